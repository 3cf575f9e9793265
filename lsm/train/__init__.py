"""Training: a pure step, the state it maps, and the loop around them."""

from lsm.train.fit import fit
from lsm.train.program import Program, build
from lsm.train.state import TrainState, init_state
from lsm.train.step import make_step, skip_nonfinite
from lsm.train.table import state_table
from lsm.train.trained import Trained, evaluate_run, load, predict_run
from lsm.train.trainer import Trainer, abstract_batch

__all__ = [
    "Program",
    "TrainState",
    "Trained",
    "Trainer",
    "abstract_batch",
    "build",
    "evaluate_run",
    "fit",
    "init_state",
    "load",
    "make_step",
    "predict_run",
    "skip_nonfinite",
    "state_table",
]
