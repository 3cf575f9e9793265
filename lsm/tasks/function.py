"""A loss that is a plain function."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lsm.errors import ConfigError, DataError, calling
from lsm.metrics import Weighted, weigh
from lsm.tasks.base import Batch, Task
from lsm.tasks.columns import asking, check_numeric, column
from lsm.tasks.texts import LENGTH, check_sequences, sequences

Values = Callable[[Any, Batch], jax.Array | tuple[jax.Array, jax.Array]]
"""(outputs, batch) -> values (B, ...), one or more an example; or their (sum, weight), two scalars.

Values are weighed by the column "weight", which is 0 where a batch is only filled up. Of a sum the
function has weighed the examples itself.
"""


@dataclasses.dataclass(frozen=True)
class Function(Task):
    """A model and a loss that is a function: `Function(model, loss_fn)`.

    `loss_fn(outputs, batch)` gives the loss of each example, (B,) or (B, ...), and its mean is
    minimised; or a pair of scalars (sum, weight). A mean alone is refused: that of a filled-up
    batch, or of micro-batches, would not be that of the examples.

    Attributes:
      model: called with the input; its outputs, any tree, are what the functions get.
      loss_fn: function of (outputs, batch), see above.
      input: column that the model is called with, as it is; or several, which it gets as a dict.
        A column of texts, one with lengths, comes as `lsm.models.Sequences`.
      metric_fns: functions like `loss_fn`, by the names under which their means are reported.
    """

    model: nn.Module
    loss_fn: Callable
    input: str | tuple[str, ...] = "x"
    metric_fns: Mapping[str, Callable] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if "loss" in self.metric_fns:
            raise ConfigError("Function.metric_fns: 'loss' given; that is the name of the loss.")

    def inputs(self, batch: Batch) -> Any:
        """Returns the input column, or a dict of several."""
        if isinstance(self.input, str):
            return _input(batch, self.input)
        return {name: _input(batch, name) for name in self.input}

    def metrics(
        self, outputs: Any, batch: Batch, train: bool, step: jax.Array
    ) -> dict[str, Weighted]:
        """Returns "loss" and the figures of `metric_fns`.

        Raises:
          DataError: a function asks for a column that is not there, or gives a mean.
        """
        weights = self.weights(batch, train)
        found = {"loss": _weighed("task.loss_fn", self.loss_fn, outputs, batch, weights)}
        for name, function in self.metric_fns.items():
            found[name] = _weighed(f"task.metric_fns.{name}", function, outputs, batch, weights)
        return found

    def check(self, batch: Batch) -> None:
        """Raises DataError where an input column is missing or holds no numbers."""
        for name in (self.input,) if isinstance(self.input, str) else self.input:
            check_numeric(column(batch, name, "task.input"), "task.input")
            if name + LENGTH in batch:
                vocabulary = getattr(self.model, "vocabulary", None)
                types = getattr(self.model, "types", None)
                check_sequences(batch, name, vocabulary, "task.input", types)


def _input(batch: Batch, name: str) -> Any:
    texts = name + LENGTH in batch
    return sequences(batch, name, "task.input") if texts else column(batch, name, "task.input")


def _weighed(
    field: str, function: Values, outputs: Any, batch: Batch, weights: jax.Array | None
) -> Weighted | tuple[jax.Array, jax.Array]:
    """Returns the sum and the weight of what a function gives for a batch; raises DataError."""
    # What a dict of outputs has not is no missing column.
    told = contextlib.nullcontext() if isinstance(outputs, Mapping) else asking(batch, field)
    with told, calling(field):
        values = function(outputs, batch)
    if isinstance(values, tuple):
        return values
    if not isinstance(values, jax.Array | np.ndarray | float | int):
        raise DataError(f"{field}: it returns {type(values).__name__}; an array is needed.")
    shape = jnp.shape(values)
    wanted = next(iter(batch.values())).shape[:1] if weights is None else weights.shape
    if shape[: len(wanted)] != wanted:
        raise DataError(
            f"{field}: it returns {shape or 'a scalar'} for examples {wanted}; one value each, "
            "(B,) or (B, ...), is needed, or a pair of scalars (sum, weight); a mean would count "
            "the rows that only fill up a batch."
        )
    _check_pairs(field, shape, outputs, batch)
    if weights is not None:  # (B, 1, ...) for values (B, ...)
        weights = jnp.reshape(weights, (*wanted, *[1] * (len(shape) - len(wanted))))
    return weigh(jnp.asarray(values), weights)


def _check_pairs(field: str, shape: tuple[int, ...], outputs: Any, batch: Batch) -> None:
    """Raises DataError for values (B, B, ...) where nothing given is (B, B, ...).

    So a difference of outputs (B, 1) and a column (B,) is of all pairs of examples: by the rules of
    broadcasting it is no error, and its mean is a loss of another problem.
    """
    given = [x.shape for x in (*jax.tree.leaves(outputs), *batch.values())]
    square = len(shape) > 1 and shape[0] == shape[1] > 1
    if square and not any(x[:2] == shape[:2] for x in given):
        raise DataError(
            f"{field}: it returns {shape} for {shape[0]} examples, a value for each pair of them; "
            f"the outputs are {', '.join(str(x.shape) for x in jax.tree.leaves(outputs))}. Outputs "
            "(B, 1) and a column (B,) do so: take outputs[:, 0]."
        )
