"""What the comparisons with a library in another interpreter (`--peer_python`) have in common."""

import os
import subprocess
from pathlib import Path

from lsm.cpu import cores
from lsm.errors import ConfigError


def torch_version(python: str) -> str | None:
    """Returns the version of PyTorch in an interpreter, or None where it has none."""
    return _said(python, "-c", "import torch; print(torch.__version__)")


def torchvision_version(python: str) -> str | None:
    """Returns the version of torchvision in an interpreter, or None where it does not work."""
    return _said(python, str(Path(__file__).with_name("start_torch.py")))


def python_version(python: str) -> str | None:
    """Returns the version of Python that an interpreter is of."""
    return _said(python, "-c", "import platform; print(platform.python_version())")


def version_of(python: str, package: str) -> str | None:
    """Returns the version of a package in an interpreter, or None where it has none."""
    return _said(python, "-c", f"import importlib.metadata as m; print(m.version({package!r}))")


def _said(python: str, *words: str) -> str | None:
    try:
        answer = subprocess.run([python, *words], capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(f"--peer_python: cannot run {python}: {error.strerror}.") from error
    return answer.stdout.strip() or None


def print_doubts(python: str, version: str | None, peer: str = "torchvision") -> None:
    """Prints, below a table, where there is no peer to compare with, and a busy machine."""
    if not version:
        print(
            f"\n{python} has no {peer}, so there is no comparison with it: install "
            "it there, or name an interpreter that has it with --peer_python=PATH."
        )
    if (load := os.getloadavg()[0]) > 2 * cores():
        print(f"\nThe machine was busy (load {load:.1f}): expect noise.")
