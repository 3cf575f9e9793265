"""What is learnt: each task joins a model to a loss and metrics, as pure functions."""

from lsm.tasks.base import (
    CONSTANTS,
    Batch,
    LossOutput,
    ModelState,
    Params,
    Rngs,
    Task,
    check_labels,
    column,
)
from lsm.tasks.classification import Classification
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
    "Function",
    "GradientFn",
    "GradientSum",
    "Labelled",
    "LanguageModelling",
    "LossOutput",
    "MaskedLanguageModelling",
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
    "TextClassification",
    "TokenClassification",
    "accumulate",
    "check_labels",
    "column",
]
