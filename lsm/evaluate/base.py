"""What a metric is that cannot travel as (sum, weight), and several of them over one batch.

The evaluation loop calls `init` once, `update` with the host's arrays of each batch, and `compute`
at the end. Accumulators are values: nothing is changed in place.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lsm.errors import ConfigError, DataError, listed, nearest

Arrays = Mapping[str, np.ndarray]
"""Named arrays with a common leading axis of examples."""


@dataclasses.dataclass(frozen=True)
class Metric(abc.ABC):
    """Base of the metrics: frozen dataclasses, so that a config can hold them."""

    @property
    @abc.abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Columns of the batch that `update` reads, beside the predictions and "weight"."""

    def told(self, classes: Sequence[str]) -> "Metric":
        """Returns this metric for data with classes of these names: itself, unless it needs them.

        The names of its figures may depend on them. Where the data names none, they are numbers.
        """
        del classes
        return self

    @abc.abstractmethod
    def init(self) -> Any:
        """Returns the accumulator that has seen nothing."""

    @abc.abstractmethod
    def update(self, accumulator: Any, predictions: Arrays, batch: Arrays) -> Any:
        """Returns the accumulator that has seen one batch more.

        Args:
          accumulator: stays as it is.
          predictions: what the task predicts for each example, such as "probability" (N, K).
          batch: columns of the batch; an optional "weight", (N,) or (N, T), weighs examples. The
            loop's padding is not among them.

        Raises:
          DataError: an array is not there, or not what the metric needs.
        """

    @abc.abstractmethod
    def compute(self, accumulator: Any) -> dict[str, float]:
        """Returns the figures by name; NaN where they are not defined, so always all names."""

    def pictures(self, accumulator: Any) -> dict[str, bytes]:
        """Returns PNGs by file name, for the workdir at the end of a run: here none."""
        del accumulator
        return {}


def names(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Returns the names of all figures.

    Raises:
      ConfigError: two metrics give a figure of one name.
    """
    given: dict[str, str] = {}
    for metric in metrics:
        # Asked of no examples: only the metric knows the names of its figures.
        for name in _figures(metric, metric.init()):
            if name in given:
                raise ConfigError(
                    f"evaluation.metrics: {given[name]} and {type(metric).__name__} both give "
                    f"{name!r}; keep one of them."
                )
            given[name] = type(metric).__name__
    return tuple(given)


def columns(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Returns the columns of the batch that any of the metrics reads."""
    return tuple(dict.fromkeys(name for metric in metrics for name in metric.columns))


def init(metrics: Sequence[Metric]) -> tuple[Any, ...]:
    """Returns the empty accumulator of each metric."""
    return tuple(metric.init() for metric in metrics)


def update(
    metrics: Sequence[Metric], accumulators: Sequence[Any], predictions: Arrays, batch: Arrays
) -> tuple[Any, ...]:
    """Returns the accumulators after one batch, without its examples of weight 0: padding.

    Args:
      metrics: the metrics.
      accumulators: one of each.
      predictions: arrays (N, ...), on the host.
      batch: arrays (N, ...), on the host; an optional "weight" is (N,) or (N, T).
    """
    if "weight" in batch:
        weighed = batch["weight"] != 0
        # With weights (N, T) an example stays if any of its targets counts.
        kept_N = weighed.any(axis=tuple(range(1, weighed.ndim)))
        predictions = {name: array[kept_N] for name, array in predictions.items()}
        batch = {name: array[kept_N] for name, array in batch.items()}
    return tuple(
        metric.update(accumulator, predictions, batch)
        for metric, accumulator in zip(metrics, accumulators, strict=True)
    )


def compute(metrics: Sequence[Metric], accumulators: Sequence[Any]) -> dict[str, float]:
    """Returns the figures of all metrics."""
    figures: dict[str, float] = {}
    for metric, accumulator in zip(metrics, accumulators, strict=True):
        figures |= _figures(metric, accumulator)
    return figures


def _figures(metric: Metric, accumulator: Any) -> dict[str, float]:
    """Returns what a metric computes; raises ConfigError where these are not the same numbers."""
    found, name = metric.compute(accumulator), type(metric).__name__
    numbers = isinstance(found, Mapping) and all(
        isinstance(x, float | int | np.floating | np.integer) for x in found.values()
    )
    if not numbers:
        raise ConfigError(f"{name}.compute: {found!r} returned; a dict of numbers is needed.")
    expected = metric.compute(metric.init())
    if found.keys() != expected.keys():
        raise ConfigError(
            f"{name}.compute: figures {listed(found)} where it has {listed(expected)} of nothing; "
            "the names must stay."
        )
    return {name: float(x) for name, x in found.items()}


def pictures(metrics: Sequence[Metric], accumulators: Sequence[Any]) -> dict[str, bytes]:
    """Returns the pictures of all metrics, by file name."""
    drawn: dict[str, bytes] = {}
    for metric, accumulator in zip(metrics, accumulators, strict=True):
        drawn |= metric.pictures(accumulator)
    return drawn


def take(arrays: Arrays, name: str, field: str) -> np.ndarray:
    """Returns `arrays[name]`; a DataError names `field` and what there is."""
    if name not in arrays:
        raise DataError(
            f"{field}: there is no {name!r}; there is {listed(arrays)}.{nearest(name, arrays)}"
        )
    return arrays[name]
