"""Classification: one integer label an example, or a share of each class."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lsm.errors import ConfigError, DataError
from lsm.tasks.base import Batch, Rngs
from lsm.tasks.columns import check_numeric, column
from lsm.tasks.labels import Labelled
from lsm.tasks.mix import Mix, mixed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Labelled):
    """Softmax cross-entropy, or the logistic loss, on the logits of arrays such as pictures.

    Integer inputs (pictures in uint8) become floats by 1/255, then (x - mean) / std.

    Attributes:
      input: column with the inputs.
      mean: subtracted from inputs: one number, or one a channel.
      std: divides inputs, after the mean.
      mix: how training examples are mixed with each other; of several, one is drawn for each batch.
    """

    input: str = "image"
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    mix: tuple[Mix, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not np.all(self.std):
            raise ConfigError(f"Classification.std: {self.std} given; inputs are divided by it.")
        if self.class_weights and self.mix:
            raise ConfigError("Classification.mix: class_weights are of one class an example.")

    @property
    def streams(self) -> tuple[str, ...]:
        """Those of the model, and "mix"."""
        return (*super().streams, "mix") if self.mix else super().streams

    def augment(self, batch: Batch, rngs: Rngs) -> Batch:
        """Returns the batch after one of `mix`: float inputs, and labels (B, K) float32.

        Raises:
          ConfigError: examples are weighed, or the model does not say how many outputs it has.
        """
        if not self.mix:
            return batch
        if "weight" in batch:
            raise ConfigError(
                "task.mix: the examples have weights, and a mixed one has none of them."
            )
        x_B, shares_BxK = mixed(rngs["mix"], self.mix, self._scaled(batch), self._shares(batch))
        return {**batch, self.input: x_B, self.label: shares_BxK}

    def _scaled(self, batch: Batch) -> jax.Array:
        x = jnp.asarray(column(batch, self.input, "task.input"))
        # On the device: a batch crosses over in a quarter of the bytes.
        return x.astype(jnp.float32) / 255 if jnp.issubdtype(x.dtype, jnp.integer) else x

    def _shares(self, batch: Batch) -> jax.Array:
        """Returns the labels as float32 (B, K); NaN for a number that is no class."""
        labels_B, outputs = column(batch, self.label, "task.label"), self.outputs
        if jnp.issubdtype(labels_B.dtype, jnp.floating):
            return labels_B
        if outputs is None:
            raise ConfigError(
                f"task.mix: {type(self.model).__name__} has no field `outputs`, the number of "
                "classes; labels (B, K) are needed then."
            )
        known_B = (labels_B >= 0) & (labels_B < outputs)
        return jnp.where(known_B[:, None], jax.nn.one_hot(labels_B, outputs), jnp.nan)

    def inputs(self, batch: Batch) -> jax.Array:
        """Returns float32 inputs, scaled and normalised."""
        x = self._scaled(batch)
        if self.mean == 0.0 and self.std == 1.0:
            return x
        return (x - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def check(self, batch: Batch) -> None:
        """Raises DataError for missing columns or labels outside the model's outputs."""
        x = column(batch, self.input, "task.input")
        check_numeric(x, "task.input")
        for name in ("mean", "std"):  # three on grey pictures would make three channels of one
            given = np.size(getattr(self, name))
            if given not in (1, *x.shape[1:][-1:]):
                raise DataError(
                    f"task.{name}: {given} numbers given for {self.input!r} of shape "
                    f"{x.shape[1:]}; one is needed, or one a channel."
                )
        super().check(batch)
