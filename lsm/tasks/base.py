"""What a task is to the trainer: initialise, loss, evaluate. All pure functions of arrays."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from lsm.errors import DataError, listed, nearest
from lsm.metrics import Weighted

Batch = Mapping[str, jax.Array | np.ndarray]
"""Named arrays with a common leading batch axis. An optional float32 column "weight" weighs
examples: (B,), or (B, T) where the task has targets (B, T)."""

Params = Any
"""Tree of trainable arrays: Linen's "params" collection."""

ModelState = Any
"""Every other Linen collection, such as batch norm's running means; {} for most models."""


class LossOutput(NamedTuple):
    """What a loss returns beside its gradient: metrics hold "loss", and the new model state."""

    metrics: dict[str, Weighted]
    model_state: ModelState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A Linen model, the columns that it reads, a loss and metrics.

    Attributes:
      model: Linen module called as `model.apply(variables, inputs, train)`.
    """

    model: nn.Module
    unit: ClassVar[str] = "examples"
    """What the loss is a mean over, in the plural; its speed is logged as `{unit}_per_sec`."""

    @abc.abstractmethod
    def inputs(self, batch: Batch) -> jax.Array:
        """Returns the model's input from a batch."""

    @abc.abstractmethod
    def metrics(self, outputs: jax.Array, batch: Batch, train: bool) -> dict[str, Weighted]:
        """Returns named (sum, weight) pairs; "loss" is the one that training minimises."""

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, ModelState]:
        """Returns float32 parameters and the model state for batches shaped like `batch`."""
        variables = dict(self.model.init(key, self.inputs(batch)))
        return variables.pop("params", {}), variables

    def loss(
        self, params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, LossOutput]:
        """Returns the *sum* of the training loss, for `jax.grad`, and what goes with it."""
        outputs, new_state = self.model.apply(
            {"params": params, **model_state},
            self.inputs(batch),
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        metrics = self.metrics(outputs, batch, train=True)
        return metrics["loss"].sum, LossOutput(metrics, new_state)

    def evaluate(
        self, params: Params, model_state: ModelState, batch: Batch
    ) -> dict[str, Weighted]:
        """Returns the metrics of one evaluation batch, without dropout or state changes."""
        outputs = self.model.apply(
            {"params": params, **model_state}, self.inputs(batch), train=False
        )
        return self.metrics(outputs, batch, train=False)

    def summary(self, totals: Mapping[str, Weighted]) -> dict[str, float]:
        """Turns totals over many batches into the figures to report: the means."""
        return {
            name: float(total.sum) / float(total.weight) if float(total.weight) else math.nan
            for name, total in totals.items()
        }

    @abc.abstractmethod
    def check(self, batch: Batch) -> None:
        """Raises DataError, in one line, where a batch cannot be what the task needs."""


def column(batch: Batch, name: str, field: str) -> jax.Array | np.ndarray:
    """Returns `batch[name]`; a DataError names `field` and the columns that there are."""
    if name not in batch:
        raise DataError(
            f"{field}: the data has no column {name!r}; it has {listed(batch)}."
            + nearest(name, batch)
        )
    return batch[name]


def check_numeric(values: np.ndarray, field: str) -> None:
    """Raises DataError where a column holds texts, or pictures of different sizes."""
    if values.dtype == object:
        kind = type(values.flat[0]).__name__
        raise DataError(
            f"{field}: the examples are {kind} of different shapes; numbers of one shape are "
            "needed (for pictures, set data.source.size)."
        )


def check_labels(labels: np.ndarray, outputs: int | None, field: str) -> None:
    """Raises DataError where an integer label is outside the model's outputs."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{field}: labels are {labels.dtype}; integer class numbers are needed.")
    if outputs is None or not labels.size:
        return
    low, high = labels.min(), labels.max()
    if low < 0 or high >= outputs:
        raise DataError(
            f"{field}: a label of {low if low < 0 else high} where the model has {outputs} "
            f"outputs; labels must be 0 to {outputs - 1}."
        )
