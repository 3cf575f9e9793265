"""Figures that are no means: computed on the host, from the predictions for each example."""

from lsm.evaluate.base import Metric, columns, compute, init, names, pictures, update
from lsm.evaluate.classification import F1, CalibrationError, RocAuc, TopK
from lsm.evaluate.drawing import Confusion, Mistakes
from lsm.evaluate.entities import EntityF1
from lsm.evaluate.regression import R2
from lsm.evaluate.translation import Bleu

__all__ = [
    "F1",
    "R2",
    "Bleu",
    "CalibrationError",
    "Confusion",
    "EntityF1",
    "Metric",
    "Mistakes",
    "RocAuc",
    "TopK",
    "columns",
    "compute",
    "init",
    "names",
    "pictures",
    "update",
]
