"""Metrics of classification, equal to scikit-learn's."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm.checks import require
from lsm.errors import ConfigError, DataError
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
      by_class: adds the three of each class, "f1/cat", and over all examples, "f1_micro": of one
        label an example these are all the accuracy.
      classes: names for `by_class`; () takes those that the data has.
    """

    label: str = "label"
    prediction: str = "label"
    by_class: bool = False
    classes: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Metric.columns`."""
        return (self.label,)

    def told(self, classes: Sequence[str]) -> "F1":
        """See `Metric.told`."""
        return named(self, classes) if self.by_class else self

    def init(self) -> np.ndarray:
        """Returns the empty confusion matrix: weights of examples, by (label, prediction)."""
        return np.zeros((len(named(self, ()).classes) if self.by_class else 0,) * 2)

    def update(self, accumulator: np.ndarray, predictions: Arrays, batch: Arrays) -> np.ndarray:
        """See `Metric.update`."""
        most = len(self.classes) if self.by_class else None
        pairs = (self.label, self.prediction)
        return confused(accumulator, predictions, batch, *pairs, field="F1", classes=most)

    def compute(self, accumulator: np.ndarray) -> dict[str, float]:
        """Returns "f1", "precision" and "recall", and with `by_class` those of each class."""
        hits_K, labels_K = accumulator.diagonal(), accumulator.sum(1)
        predicted_K = accumulator.sum(0)
        occurs_K = labels_K + predicted_K > 0
        # 2 p r / (p + r) is hits / mean(labels, predicted): each figure is hits over a total.
        totals = {"f1": (labels_K + predicted_K) / 2, "precision": predicted_K, "recall": labels_K}
        shares = {
            name: hits_K / np.where(total_K == 0, 1, total_K) if occurs_K.any() else hits_K + np.nan
            for name, total_K in totals.items()
        }
        found = {
            name: float(share_K[occurs_K].mean()) if occurs_K.any() else math.nan
            for name, share_K in shares.items()
        }
        if self.by_class:
            whole = accumulator.sum()
            micro = float(hits_K.sum() / whole) if whole else math.nan
            found |= {f"{name}_micro": micro for name in shares}
            found |= {
                f"{name}/{kind}": float(share)
                for name, share_K in shares.items()
                for kind, share in zip(self.classes, share_K, strict=True)
            }
        return found


@dataclasses.dataclass(frozen=True)
class TopK(Metric):
    """Share of the examples whose label is among the `k` likeliest classes, "top_5" for 5.

    Of classes with one score the later counts as likelier, as in scikit-learn. NaN where a score
    is.

    Attributes:
      k: how many, at least 1.
      prediction: predictions (N, K), one score a class.
      label: column with int labels (N,) in [0, K).
    """

    k: int = 5
    prediction: str = "probability"
    label: str = "label"

    def __post_init__(self):
        require(self, k="[1, inf)")

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Metric.columns`."""
        return (self.label,)

    def init(self) -> tuple[float, float]:
        """Returns no hits of no weight."""
        return 0.0, 0.0

    def update(self, accumulator: tuple, predictions: Arrays, batch: Arrays) -> tuple:
        """See `Metric.update`."""
        scores_MxK, labels_M, weights_M = _scored(self, predictions, batch)
        own_Mx1 = np.take_along_axis(scores_MxK, labels_M[:, None], axis=1)
        later_MxK = np.arange(scores_MxK.shape[1]) > labels_M[:, None]
        before_M = ((scores_MxK > own_Mx1) | (scores_MxK == own_Mx1) & later_MxK).sum(1)
        hits_M = np.where(np.isnan(scores_MxK).any(1), math.nan, before_M < self.k)
        hits, weight = accumulator
        return hits + float((weights_M * hits_M).sum()), weight + float(weights_M.sum())

    def compute(self, accumulator: tuple) -> dict[str, float]:
        """Returns "top_K"."""
        hits, weight = accumulator
        return {f"top_{self.k}": hits / weight if weight else math.nan}


@dataclasses.dataclass(frozen=True)
class CalibrationError(Metric):
    """Expected calibration error, "calibration_error" (Guo et al. 2017, arXiv:1706.04599).

    Examples stand in bins of equal width by the probability of the likeliest class; the figure is
    the mean over the examples of |accuracy - mean probability| of their bin. 0 is perfect.

    Attributes:
      bins: how many, at least 1; the upper edge belongs to a bin.
      prediction: probabilities (N, K), or (N,), that of class 1.
      label: column with int labels (N,) in [0, K).
    """

    bins: int = 15
    prediction: str = "probability"
    label: str = "label"

    def __post_init__(self):
        require(self, bins="[1, inf)")

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Metric.columns`."""
        return (self.label,)

    def init(self) -> np.ndarray:
        """Returns weights, hits and sums of probabilities of each bin, (3, bins) in float64."""
        return np.zeros((3, self.bins))

    def update(self, accumulator: np.ndarray, predictions: Arrays, batch: Arrays) -> np.ndarray:
        """See `Metric.update`."""
        scores_MxK, labels_M, weights_M = _scored(self, predictions, batch)
        sure_M = scores_MxK.max(1).astype(np.float64)
        hits_M = scores_MxK.argmax(1) == labels_M
        bins_M = np.searchsorted(np.linspace(0, 1, self.bins + 1), sure_M) - 1
        bins_M = bins_M.clip(0, self.bins - 1)
        added = [np.bincount(bins_M, weights_M * x_M, self.bins) for x_M in (1.0, hits_M, sure_M)]
        return accumulator + added

    def compute(self, accumulator: np.ndarray) -> dict[str, float]:
        """Returns "calibration_error"."""
        weights, hits, sure = accumulator
        apart = float(np.abs(hits - sure).sum())
        return {"calibration_error": apart / weights.sum() if weights.any() else math.nan}


def named(metric: Any, classes: Sequence[str]) -> Any:
    """Returns a metric with the names of the classes in its field `classes`, where that is empty.

    Raises:
      ConfigError: there are none.
    """
    if metric.classes:
        return metric
    if not classes:
        raise ConfigError(
            f"{type(metric).__name__}.classes: neither the data nor the model says which classes "
            "there are; give their names."
        )
    return dataclasses.replace(metric, classes=tuple(classes))


def confused(
    confusion_KxK: np.ndarray,
    predictions: Arrays,
    batch: Arrays,
    label: str,
    prediction: str,
    field: str,
    classes: int | None = None,
) -> np.ndarray:
    """Returns a confusion matrix, by (label, prediction), that has seen one batch more.

    Args:
      confusion_KxK: weights of the examples before.
      predictions: they have `prediction`, int labels.
      batch: it has `label`.
      label: its column.
      prediction: its name.
      field: what to name in an error.
      classes: how many there are; None makes the matrix as large as the largest seen.
    """
    labels = take(batch, label, f"{field}.label")
    weights_M, labels_M = _flat(batch, labels)
    predicted_M = take(predictions, prediction, f"{field}.prediction").reshape(-1)
    kept_M = weights_M != 0
    if labels.ndim > 1:  # what `TokenClassification` says of padding, whatever its label is
        kept_M &= predicted_M >= 0
    weights_M, labels_M, predicted_M = weights_M[kept_M], labels_M[kept_M], predicted_M[kept_M]
    _check_labels(labels_M, f"{field}.label", classes)
    _check_labels(predicted_M, f"{field}.prediction", classes)
    # It grows with the largest class seen, so nobody has to say how many there are.
    old, size = len(confusion_KxK), np.concatenate([labels_M, predicted_M]).max(initial=-1) + 1
    grown_KxK = np.zeros((max(old, size),) * 2)
    grown_KxK[:old, :old] = confusion_KxK
    # Not `+=`, which counts a pair that occurs several times once.
    np.add.at(grown_KxK, (labels_M, predicted_M), weights_M)
    return grown_KxK


def _scored(metric: Any, predictions: Arrays, batch: Arrays) -> tuple[np.ndarray, ...]:
    """Returns scores (M, K), labels (M,) and weights (M,) of the examples that count."""
    name = type(metric).__name__
    scores = take(predictions, metric.prediction, f"{name}.prediction")
    labels = take(batch, metric.label, f"{name}.label")
    if scores.ndim == labels.ndim:
        scores = np.stack([1 - scores, scores], axis=-1)
    weights_M, labels_M = _flat(batch, labels)
    kept_M = weights_M != 0
    scores_MxK = scores.reshape(-1, scores.shape[-1])[kept_M]
    _check_labels(labels_M[kept_M], f"{name}.label", scores.shape[-1])
    return scores_MxK, labels_M[kept_M], weights_M[kept_M]


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
    weights = np.broadcast_to(spread, labels.shape).astype(np.float64)
    if labels.ndim > 1:  # padding, and what else `TokenClassification` does not count
        weights = np.where(labels < 0, 0.0, weights)
    return weights.reshape(-1), labels.reshape(-1)


def _check_labels(labels_M: np.ndarray, field: str, classes: int | None = None) -> None:
    if not np.issubdtype(labels_M.dtype, np.integer):
        raise DataError(f"{field}: {labels_M.dtype} given; integer class numbers are needed.")
    top = math.inf if classes is None else classes
    wrong = labels_M[(labels_M < 0) | (labels_M >= top)]
    if len(wrong):
        allowed = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise DataError(f"{field}: a label of {wrong[0]}; labels must be {allowed}.")
