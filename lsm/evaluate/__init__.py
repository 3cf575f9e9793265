"""Figures that are no means: computed on the host, from the predictions for each example."""

from lsm.evaluate.base import Metric, columns, compute, init, names, update
from lsm.evaluate.classification import F1, RocAuc
from lsm.evaluate.regression import R2

__all__ = ["F1", "R2", "Metric", "RocAuc", "columns", "compute", "init", "names", "update"]
