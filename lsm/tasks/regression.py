"""Regression: real-valued targets."""

import dataclasses
from typing import Literal

import jax

from lsm import losses
from lsm.errors import DataError
from lsm.metrics import Weighted, weigh
from lsm.tasks.base import Batch, Task
from lsm.tasks.columns import check_numeric, column


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Mean squared error.

    Attributes:
      model: maps inputs (B, ...) to predictions of the targets' shape.
      input: column with float inputs.
      target: column with float targets, (B,) or (B, K).
      form: "mean" is 1/N sum (y - t)^2, "half" is 1/2N; N counts examples times outputs.
    """

    input: str = "x"
    target: str = "y"
    form: Literal["mean", "half"] = "mean"

    def inputs(self, batch: Batch) -> jax.Array:
        """Returns the input column as it is."""
        return column(batch, self.input, "task.input")

    def metrics(
        self, outputs: jax.Array, batch: Batch, train: bool, step: jax.Array
    ) -> dict[str, Weighted]:
        """Returns "loss" in the chosen form and "absolute_error".

        Raises:
          DataError: there is not one target for each output.
        """
        targets_BxK = column(batch, self.target, "task.target")
        if targets_BxK.size != outputs.size:  # (B,) and (B, 1) are the same targets
            raise DataError(
                f"task.target: {self.target!r} is {targets_BxK.shape} and the model's outputs are "
                f"{outputs.shape}; one target for each output is needed."
            )
        targets_BxK = targets_BxK.reshape(outputs.shape)
        error = losses.squared_error if self.form == "mean" else losses.half_squared_error
        weights_B = batch.get("weight")
        if weights_B is not None:
            weights_B = weights_B.reshape(-1, *[1] * (outputs.ndim - 1))  # (B, 1, ...)
        return {
            "loss": weigh(error(outputs, targets_BxK), weights_B),
            "absolute_error": weigh(abs(outputs - targets_BxK), weights_B),
        }

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns "prediction", (B,) or (B, K)."""
        return {"prediction": outputs}

    def check(self, batch: Batch) -> None:
        """Raises DataError for missing columns, or ones of several shapes."""
        check_numeric(column(batch, self.input, "task.input"), "task.input")
        check_numeric(column(batch, self.target, "task.target"), "task.target")
