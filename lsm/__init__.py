"""lsm: train large-scale models in JAX. An experiment is a typed value, a step a pure function."""

import sys

try:
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
except KeyboardInterrupt:  # of a command these are the first seconds, before it can catch anything
    print("error: interrupted.", file=sys.stderr)
    sys.exit(130)

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
