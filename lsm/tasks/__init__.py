"""What is learnt: each task joins a model to a loss and metrics, as pure functions."""

from lsm.tasks.base import Batch, LossOutput, ModelState, Params, Task, check_labels, column
from lsm.tasks.classification import Classification
from lsm.tasks.language import LanguageModelling
from lsm.tasks.regression import Regression

__all__ = [
    "Batch",
    "Classification",
    "LanguageModelling",
    "LossOutput",
    "ModelState",
    "Params",
    "Regression",
    "Task",
    "check_labels",
    "column",
]
