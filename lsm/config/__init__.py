"""The vocabulary of an experiment, its files and its command line.

`experiment`, `computed` and `callbacks` have the dataclasses, `flags` runs a config file and puts
overrides in, `schema` walks any value: types, documentation, JSON, differences.
"""

from lsm.config.callbacks import Callback, Moment, StopTraining
from lsm.config.computed import Computed, PatchWhitening
from lsm.config.experiment import Checkpoint, EarlyStopping, Evaluation, Experiment, Start, Train

__all__ = [
    "Callback",
    "Checkpoint",
    "Computed",
    "EarlyStopping",
    "Evaluation",
    "Experiment",
    "Moment",
    "PatchWhitening",
    "Start",
    "StopTraining",
    "Train",
]
