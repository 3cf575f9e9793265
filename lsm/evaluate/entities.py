"""Entities: what tags of tokens say together."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from lsm.errors import ConfigError, DataError
from lsm.evaluate.base import Arrays, Metric, take


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntityF1(Metric):
    """ "entity_f1", "entity_precision" and "entity_recall", of entities that are right as a whole.

    Those of the CoNLL tasks (doi:10.3115/1119176.1195), with tags in BIO read strictly: an entity
    is B-X and the I-X right after it, and an I-X that follows neither belongs to none. Over all
    entities of all kinds; NaN where there is nothing to divide by. Tokens of weight 0 are passed
    over; the weight of an example is that of each of its entities.

    Attributes:
      tags: the name of each label, such as ("O", "B-PER", "I-PER").
      label: column with int labels (N, T); those below 0 are no tag, and passed over.
      prediction: predicted int labels (N, T); likewise, which `TokenClassification` has at padding.
    """

    tags: tuple[str, ...]
    label: str = "label"
    prediction: str = "label"

    def __post_init__(self):
        wrong = [tag for tag in self.tags if tag != "O" and tag[:2] not in ("B-", "I-")]
        if wrong or not self.tags:
            raise ConfigError(f"EntityF1.tags: {wrong} given; allowed: 'O', 'B-KIND', 'I-KIND'.")

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Metric.columns`."""
        return (self.label,)

    def init(self) -> tuple[float, float, float]:
        """Returns how many entities are right, predicted, and there: none."""
        return 0, 0, 0

    def update(self, accumulator: tuple, predictions: Arrays, batch: Arrays) -> tuple:
        """See `Metric.update`."""
        labels_NxT = take(batch, self.label, "EntityF1.label")
        said_NxT = take(predictions, self.prediction, "EntityF1.prediction")
        if labels_NxT.shape != said_NxT.shape:
            raise DataError(f"EntityF1: labels {labels_NxT.shape}, predictions {said_NxT.shape}.")
        if max(labels_NxT.max(initial=0), said_NxT.max(initial=0)) >= len(self.tags):
            raise DataError(f"EntityF1.tags: {len(self.tags)} given; the labels have more.")
        weight_N, real_NxT = _weights(batch, labels_NxT.shape)
        counted_NxT = (labels_NxT >= 0) & (said_NxT >= 0) & real_NxT
        for number, counted_T in enumerate(counted_NxT):
            true, found = (self._entities(x[number, counted_T]) for x in (labels_NxT, said_NxT))
            counts = (weight_N[number] * len(of) for of in (true & found, found, true))
            accumulator = tuple(map(sum, zip(accumulator, counts, strict=True)))
        return accumulator

    def compute(self, accumulator: tuple) -> dict[str, float]:
        """Returns the three figures."""
        right, found, true = accumulator
        totals = {"f1": (found + true) / 2, "precision": found, "recall": true}
        return {f"entity_{k}": right / n if n else math.nan for k, n in totals.items()}

    def _entities(self, labels_T: np.ndarray) -> set[tuple[int, int, str]]:
        """Returns (first, last, kind) of each entity."""
        return set(_entities([self.tags[k] if k >= 0 else "O" for k in labels_T]))


def _weights(batch: Arrays, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weight (N,) of each example, and which tokens (N, T) count."""
    weight = np.asarray(batch.get("weight", 1.0), np.float64)
    if weight.ndim < 2:
        return np.broadcast_to(weight, shape[:1]), np.ones(shape, bool)
    if not np.isin(weight, (0, 1)).all():
        raise DataError("EntityF1: weights of tokens are given that are neither 0 nor 1.")
    return np.ones(shape[0]), weight != 0


def _entities(tags: list[str]) -> Iterable[tuple[int, int, str]]:
    for first, tag in enumerate(tags):
        if tag.startswith("B-"):
            last = first
            while tags[last + 1 : last + 2] == ["I-" + tag[2:]]:
                last += 1
            yield first, last, tag[2:]
