"""What is learnt: each task joins a model to a loss and metrics, as pure functions."""

from lsm.tasks.base import CONSTANTS, Batch, LossOutput, ModelState, Params, Rngs, Task
from lsm.tasks.classification import Classification
from lsm.tasks.columns import check_labels, column
from lsm.tasks.distillation import Distillation, Match, Teacher
from lsm.tasks.function import Function
from lsm.tasks.gradient import GradientFn, GradientSum, MeanGradient, Metrics, accumulate
from lsm.tasks.labels import Labelled
from lsm.tasks.language import LanguageModelling
from lsm.tasks.masked import MaskedLanguageModelling
from lsm.tasks.mix import CutMix, Mix, Mixup
from lsm.tasks.preference import DirectPreference
from lsm.tasks.regression import Regression
from lsm.tasks.sequence_to_sequence import SequenceToSequence
from lsm.tasks.spans import Spans, TokenClassification
from lsm.tasks.texts import TextClassification

__all__ = [
    "CONSTANTS",
    "Batch",
    "Classification",
    "CutMix",
    "DirectPreference",
    "Distillation",
    "Function",
    "GradientFn",
    "GradientSum",
    "Labelled",
    "LanguageModelling",
    "LossOutput",
    "MaskedLanguageModelling",
    "Match",
    "MeanGradient",
    "Metrics",
    "Mix",
    "Mixup",
    "ModelState",
    "Params",
    "Regression",
    "Rngs",
    "SequenceToSequence",
    "Spans",
    "Task",
    "Teacher",
    "TextClassification",
    "TokenClassification",
    "accumulate",
    "check_labels",
    "column",
]
