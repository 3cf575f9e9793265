"""lsm: train large-scale models in JAX. An experiment is a typed value, a step a pure function."""

import contextlib
import importlib
import itertools
import signal
import sys
from typing import TYPE_CHECKING, Any

from lsm.errors import LsmError

if TYPE_CHECKING:
    from lsm.config import (
        Callback,
        Checkpoint,
        EarlyStopping,
        Evaluation,
        Experiment,
        Moment,
        Start,
        StopTraining,
        Train,
    )
    from lsm.data import Data
    from lsm.mesh import Mesh
    from lsm.train import evaluate_run, fit, load, predict_files, predict_run, summary

__all__ = [
    "Callback",
    "Checkpoint",
    "Data",
    "EarlyStopping",
    "Evaluation",
    "Experiment",
    "LsmError",
    "Mesh",
    "Moment",
    "Start",
    "StopTraining",
    "Train",
    "evaluate_run",
    "fit",
    "load",
    "predict_files",
    "predict_run",
    "summary",
]

_ROOMS = ("config", "data", "mesh", "train")
"""Where these names are; they are imported when one is asked for: `lsm.export` loads a model with
jax alone."""


@contextlib.contextmanager
def _interruption_waits():
    """Keeps Ctrl-C until the end of the imports, which take seconds; a second one acts at once.

    Raised in the middle it would be what the extension at work makes of it (NumPy: a trace on
    stderr and an ImportError), and no command can catch it yet.
    """
    waiting = []

    def wait(number, frame):
        waiting.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        previous = signal.signal(signal.SIGINT, wait)
    except ValueError:  # not the main thread, which alone is interrupted
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        waiting.append(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, previous)
    if waiting:
        print("error: interrupted.", file=sys.stderr)
        sys.exit(130)


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__`, with all the others, or a room."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _interruption_waits():
        if name in __all__:
            rooms = [importlib.import_module(f"{__name__}.{room}") for room in _ROOMS]
            found = {n: vars(room)[n] for room in rooms for n in __all__ if n in vars(room)}
            globals().update(found)
            return found[name]
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_command() -> bool:
    """Whether Python was started by `-m` with a module of this repository."""
    words = dict(itertools.pairwise(sys.orig_argv))
    return words.get("-m", "").split(".")[0] in ("lsm", "experiments", "launch", "benchmarks")


if _is_command():
    # Now, where Ctrl-C waits: the packages around a command would be imported before it.
    with contextlib.suppress(ModuleNotFoundError):  # told by what needs it
        __getattr__("fit")
