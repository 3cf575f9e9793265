"""Compares text with a file of tests/launch/golden, or writes it there.

LSM_GOLDEN=write python -m pytest tests/launch

writes what the launchers print now; look at `git diff tests/launch/golden` before you keep it.
"""

import os
import pathlib
import subprocess

FOLDER = pathlib.Path(__file__).parent / "golden"


def compare(name, text):
    path = FOLDER / name
    if os.environ.get("LSM_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.exists() and text == path.read_text(), (
        f"{name} differs from tests/launch/golden/{name}. If it should, write it anew with "
        "`LSM_GOLDEN=write python -m pytest tests/launch` and review `git diff tests/launch/golden`"
    )


def check_shell(text):
    """Bash can parse it."""
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
