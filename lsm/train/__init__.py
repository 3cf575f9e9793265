"""Training: a pure step, the state it maps, and the loop around them."""

from lsm.train.fit import evaluate_run, fit
from lsm.train.program import Program, build
from lsm.train.state import TrainState, init_state
from lsm.train.step import accumulated_gradient, make_step, mean_gradient, skip_nonfinite
from lsm.train.table import abstract_batch, state_table

__all__ = [
    "Program",
    "TrainState",
    "abstract_batch",
    "accumulated_gradient",
    "build",
    "evaluate_run",
    "fit",
    "init_state",
    "make_step",
    "mean_gradient",
    "skip_nonfinite",
    "state_table",
]
