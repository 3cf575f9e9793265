"""The vocabulary of an experiment, its files and its command line.

`experiment` and `callbacks` have the dataclasses, `flags` runs a config file and puts overrides in,
`schema` walks any value: types, documentation, JSON, differences.
"""

from lsm.config.callbacks import Callback, Moment, StopTraining
from lsm.config.experiment import Checkpoint, EarlyStopping, Evaluation, Experiment, Start, Train

__all__ = [
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "Evaluation",
    "Experiment",
    "Moment",
    "Start",
    "StopTraining",
    "Train",
]
