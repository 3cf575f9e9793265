"""The record of a run: where and with what it ran, and what came out."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lsm.cpu import cores
from lsm.errors import TrainingError
from lsm.files import atomic_write, parsed_json, plain_json
from lsm.mesh import jit, replicated
from lsm.params import path_name

_PACKAGES = ("lsm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ended with; `workdir/result.json` holds the same keys.

    Attributes:
      metrics: final figures by split, {"test": {"accuracy": 0.91}}; not finite ones are null in the
        file and NaN when read back.
      step: optimiser steps taken.
      wall_time: seconds from the start of `lsm.fit` to the end of the last evaluation, over all
        pieces of a run that was interrupted.
      fingerprint: see `fingerprint`.
      seed: the seed that the run's data order, initial parameters and noise come from.
      stopped: why it ended, "completed", "early stopping" or "interrupted".
      git_revision: see `git_revision`.
      versions: see `versions`.
      hardware: see `hardware`.
      best_step: the step of the best evaluation, where the run kept track of it.
      skipped: updates that were not finite, and left out; see `train.skip_nonfinite`.
      goodput: where the time went and how fast the steps were; see `Throughput.summary`. Not
        compared by ==, as no two runs take the same time.
    """

    metrics: Mapping[str, Mapping[str, float]]
    step: int
    wall_time: float
    fingerprint: str
    seed: int
    stopped: str
    git_revision: str | None
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]
    best_step: int | None = None
    skipped: int = 0
    goodput: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values, figures that are not finite as None."""
        return plain_json({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    def save(self, workdir: Path) -> Path:
        """Writes `result.json` and returns its path. Raises TrainingError (see write_result)."""
        return write_result(workdir, self.to_json())

    @classmethod
    def load(cls, workdir: Path) -> "Result":
        """Reads `workdir/result.json`. Raises TrainingError where it is absent or not a result."""
        path = Path(workdir) / "result.json"
        try:
            fields = parsed_json(path.read_text())
            fields["metrics"] = {
                split: {k: math.nan if v is None else v for k, v in figures.items()}
                for split, figures in fields["metrics"].items()
            }
            return cls(**fields)
        except OSError as error:
            raise TrainingError(f"{path}: cannot be read: {error.strerror}.") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TrainingError(f"{path}: not the result of a run: {error}.") from error


def write_result(workdir: Path, result: Mapping[str, Any]) -> Path:
    """Writes `result` as `workdir/result.json`, in one move; what is not finite becomes null.

    Raises:
      TrainingError: the disk is full or the workdir cannot be written.
    """
    path = Path(workdir) / "result.json"
    text = json.dumps(plain_json(result), indent=2, allow_nan=False)
    atomic_write(path, text.encode() + b"\n")
    return path


def fingerprint(params: Any) -> str:
    """Returns the sha256, in hex, of all parameters: equal for models equal to the last bit.

    The bytes of every leaf (C order, little-endian, its own dtype) in the order of the leaves'
    paths, "block/kernel", compared as strings. For a tree of nested dicts of NumPy arrays:

        digest = hashlib.sha256()
        for path in sorted(flat):                       # {"block/kernel": array, ...}
            digest.update(flat[path].tobytes())
        digest.hexdigest()

    Arrays may be sharded in any way; where shards are on other processes, every process must call
    this, because the leaves are gathered one at a time.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    by_path = {path_name(path): leaf for path, leaf in leaves}
    digest = hashlib.sha256()
    for path in sorted(by_path):
        # One leaf at a time: the whole model need not fit on a device.
        array = np.asarray(jax.device_get(_whole(by_path[path])))
        if array.dtype.byteorder == ">":
            array = array.byteswap()
        digest.update(array.tobytes())
    return digest.hexdigest()


def _whole(leaf: Any) -> Any:
    """Returns an array that this process can read in full."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    # An identity whose result is replicated: XLA gathers the shards.
    everywhere = replicated(leaf.sharding.mesh)
    return jit(lambda x: x, in_shardings=leaf.sharding, out_shardings=everywhere)(leaf)


def hardware() -> dict[str, Any]:
    """Returns platform, device kind and count, processes, and this host's CPU, cores and GiB."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": round(memory / 2**30, 1),
    }


def _cpu_model() -> str:
    """Returns the CPU's name as Linux or macOS tell it, else its architecture."""
    try:
        if platform.system() == "Darwin":
            return _output("sysctl", "-n", "machdep.cpu.brand_string")
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration, subprocess.SubprocessError):
        return platform.machine()


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that decide a run's figures."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"  # lsm itself, used from its source tree
    return found


def git_revision(source: Path = Path(__file__).parent) -> str | None:
    """Returns the commit of lsm's source tree, "+dirty" where Python files differ from it.

    None where the source is not in a git checkout, or git is not there; never raises.
    """
    git = functools.partial(_output, "git", "-C", str(source))
    try:
        # An installed lsm may lie in an environment inside somebody else's checkout.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        # What decides figures: code. Notes and workdirs in the checkout do not.
        changed = git("status", "--porcelain", "--", ":(top)*.py", ":(top)pyproject.toml")
        return git("rev-parse", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _output(*command: str) -> str:
    # Inside a git hook these variables name another checkout than the one asked about.
    hidden = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    # Else `git status` may lock the index, in the way of a commit that is being made.
    kept = {k: v for k, v in os.environ.items() if k not in hidden} | {"GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
