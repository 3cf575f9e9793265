"""Training: a pure step, the state it maps, and the loop around them."""

from lsm.train.attention import attention_maps
from lsm.train.fit import fit
from lsm.train.predictions import evaluate_run, predict_files, predict_run
from lsm.train.preview import preview
from lsm.train.program import Program, build
from lsm.train.state import TrainState, init_state
from lsm.train.step import make_step, skip_nonfinite
from lsm.train.table import state_table, summary
from lsm.train.trained import Trained, load
from lsm.train.trainer import Trainer, abstract_batch

__all__ = [
    "Program",
    "TrainState",
    "Trained",
    "Trainer",
    "abstract_batch",
    "attention_maps",
    "build",
    "evaluate_run",
    "fit",
    "init_state",
    "load",
    "make_step",
    "predict_files",
    "predict_run",
    "preview",
    "skip_nonfinite",
    "state_table",
    "summary",
]
