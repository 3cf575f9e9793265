"""Metrics of classification, equal to scikit-learn's."""

import dataclasses
import math

import numpy as np

from lsm.errors import DataError
from lsm.evaluate.base import Arrays, Metric, take


@dataclasses.dataclass(frozen=True)
class RocAuc(Metric):
    """Area under the ROC curve, "roc_auc": how often a positive has the higher score; ties are 1/2.

    For two classes that of the second; for more the mean over "this class or any other" (macro,
    one against the rest; Fawcett 2006, doi:10.1016/j.patrec.2005.10.010). NaN where a class does
    not occur, where only one does, or where a score is not finite.

    It keeps for every example one float32 a class (one in all for two classes), label and weight.

    Attributes:
      prediction: predictions (N, K), one score a class, or (N,), the score of class 1.
      label: column with int labels (N,) in [0, K).
    """

    prediction: str = "probability"
    label: str = "label"

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Metric.columns`."""
        return (self.label,)

    def init(self) -> tuple:
        """Returns (): parts of (scores (M, C), labels (M,), weights (M,)) will follow."""
        return ()

    def update(self, accumulator: tuple, predictions: Arrays, batch: Arrays) -> tuple:
        """See `Metric.update`."""
        scores = take(predictions, self.prediction, "RocAuc.prediction")
        labels = take(batch, self.label, "RocAuc.label")
        if scores.ndim == labels.ndim:
            scores = scores[..., None]
        classes = max(scores.shape[-1], 2)
        scores_MxC = scores.reshape(-1, scores.shape[-1])
        # Of two classes the second's score is enough, and half the memory.
        scores_MxC = scores_MxC[:, -1:] if classes == 2 else scores_MxC
        weights_M, labels_M = _flat(batch, labels)
        kept_M = weights_M != 0
        # Targets of weight 0 may have any label, such as -1 for padding.
        _check_labels(labels_M[kept_M], "RocAuc.label", classes)
        part = (scores_MxC.astype(np.float32), labels_M, weights_M.astype(np.float32))
        return (*accumulator, tuple(array[kept_M] for array in part))

    def compute(self, accumulator: tuple) -> dict[str, float]:
        """Returns "roc_auc"."""
        if not accumulator:
            return {"roc_auc": math.nan}
        scores_MxC, labels_M, weights_M = map(np.concatenate, zip(*accumulator, strict=True))
        count = scores_MxC.shape[1]
        classes = (1,) if count == 1 else range(count)
        areas = [
            _area(labels_M == k, scores_M, weights_M)
            for k, scores_M in zip(classes, scores_MxC.T, strict=True)
        ]
        return {"roc_auc": float(np.mean(areas))}


@dataclasses.dataclass(frozen=True)
class F1(Metric):
    """Macro "f1", "precision" and "recall": means over the classes of labels and predictions.

    A class that is never predicted has precision 0, one that does not occur recall 0. It keeps a
    confusion matrix (K, K) in float64, K the classes seen.

    Attributes:
      label: column with int labels (N,), 0 or more.
      prediction: predicted int labels (N,).
    """

    label: str = "label"
    prediction: str = "label"

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Metric.columns`."""
        return (self.label,)

    def init(self) -> np.ndarray:
        """Returns the empty confusion matrix: weights of examples, by (label, prediction)."""
        return np.zeros((0, 0))

    def update(self, accumulator: np.ndarray, predictions: Arrays, batch: Arrays) -> np.ndarray:
        """See `Metric.update`."""
        labels = take(batch, self.label, "F1.label")
        weights_M, labels_M = _flat(batch, labels)
        predicted_M = take(predictions, self.prediction, "F1.prediction").reshape(-1)
        kept_M = weights_M != 0
        weights_M, labels_M, predicted_M = weights_M[kept_M], labels_M[kept_M], predicted_M[kept_M]
        _check_labels(labels_M, "F1.label")
        _check_labels(predicted_M, "F1.prediction")
        # It grows with the largest class seen, so nobody has to say how many there are.
        old, size = len(accumulator), np.concatenate([labels_M, predicted_M]).max(initial=-1) + 1
        confusion_KxK = np.zeros((max(old, size),) * 2)
        confusion_KxK[:old, :old] = accumulator
        # Not `+=`, which counts a pair that occurs several times once.
        np.add.at(confusion_KxK, (labels_M, predicted_M), weights_M)
        return confusion_KxK

    def compute(self, accumulator: np.ndarray) -> dict[str, float]:
        """Returns "f1", "precision" and "recall"."""
        hits_K, labels_K = accumulator.diagonal(), accumulator.sum(1)
        predicted_K = accumulator.sum(0)
        occurs_K = labels_K + predicted_K > 0
        if not occurs_K.any():
            return dict.fromkeys(("f1", "precision", "recall"), math.nan)
        # 2 p r / (p + r) is hits / mean(labels, predicted): each figure is hits over a total.
        totals = {"f1": (labels_K + predicted_K) / 2, "precision": predicted_K, "recall": labels_K}
        return {
            name: float((hits_K / np.where(total_K == 0, 1, total_K))[occurs_K].mean())
            for name, total_K in totals.items()
        }


def _area(positive_M: np.ndarray, scores_M: np.ndarray, weights_M: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    # Where there is one class scikit-learn warns, and a NaN among the scores is a ValueError.
    if positive_M.all() or not positive_M.any() or not np.isfinite(scores_M).all():
        return math.nan
    return roc_auc_score(positive_M, scores_M, sample_weight=weights_M.astype(np.float64))


def _flat(batch: Arrays, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns float64 weights and labels, (M,) each: M = N, or N x T for labels (N, T)."""
    weights = batch.get("weight", np.ones(()))
    if weights.ndim > labels.ndim:
        raise DataError(f"weight: {weights.shape} given for labels {labels.shape}.")
    # (N,) to (N, 1): a weight is one for all targets of its example.
    spread = weights.reshape(weights.shape + (1,) * (labels.ndim - weights.ndim))
    weights_M = np.broadcast_to(spread, labels.shape).reshape(-1)
    return weights_M.astype(np.float64), labels.reshape(-1)


def _check_labels(labels_M: np.ndarray, field: str, classes: int | None = None) -> None:
    if not np.issubdtype(labels_M.dtype, np.integer):
        raise DataError(f"{field}: {labels_M.dtype} given; integer class numbers are needed.")
    top = math.inf if classes is None else classes
    wrong = labels_M[(labels_M < 0) | (labels_M >= top)]
    if len(wrong):
        allowed = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise DataError(f"{field}: a label of {wrong[0]}; labels must be {allowed}.")
