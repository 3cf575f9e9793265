"""lsm: train large-scale models in JAX. An experiment is a typed value, a step a pure function."""

import contextlib
import signal
import sys


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


with _interruption_waits():
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
    from lsm.errors import LsmError
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
