"""What classification is, whatever the input: labels, their loss, predictions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsm import losses
from lsm.checks import require
from lsm.errors import ConfigError, DataError
from lsm.metrics import Weighted, accuracy, weigh
from lsm.tasks.base import Batch, Task
from lsm.tasks.columns import check_labels, column


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(Task):
    """Classification without its `inputs`, of which each kind has its own class.

    A model of one output gives the logit of class 1 against class 0, and the loss is the logistic
    one: a logit of 0 stands for class 0.

    Attributes:
      model: maps inputs to logits (B, K), or (B, 1) for two classes.
      label: column with int labels in [0, K), or float (B, K): of each class the share.
      label_smoothing: share of the target spread over all classes, in training only.
      class_weights: one factor a class on its examples' loss; () weighs all alike.
    """

    label: str = "label"
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()

    def __post_init__(self):
        require(self, label_smoothing="[0, 1)")
        if any(weight < 0 for weight in self.class_weights):
            name = f"{type(self).__name__}.class_weights"
            raise ConfigError(f"{name}: {self.class_weights}; none below 0.")

    @property
    def outputs(self) -> int | None:
        """The number of classes that the model tells apart; None where it has no `outputs`."""
        outputs = getattr(self.model, "outputs", None)
        return 2 if outputs == 1 else outputs

    def weights(self, batch: Batch, train: bool) -> jax.Array | None:
        """Returns the column "weight", in training times the class weights."""
        weights_B = super().weights(batch, train)
        if not (train and self.class_weights):
            return weights_B
        labels_B = column(batch, self.label, "task.label")
        class_weights_B = jnp.asarray(self.class_weights)[labels_B]
        return class_weights_B if weights_B is None else weights_B * class_weights_B

    def metrics(
        self, outputs: jax.Array, batch: Batch, train: bool, step: jax.Array
    ) -> dict[str, Weighted]:
        """Returns "loss" (smoothed and class-weighted in training) and "accuracy".

        Of labels (B, K) the accuracy is that of the largest share.
        """
        labels_B = column(batch, self.label, "task.label")
        # Losses of evaluations compare, whatever the smoothing in training.
        smoothing, outputs = self.label_smoothing if train else 0.0, _logits(outputs)
        loss_B = losses.softmax_cross_entropy(outputs, labels_B, smoothing)
        if jnp.issubdtype(labels_B.dtype, jnp.floating):
            labels_B = labels_B.argmax(-1)
        return {
            "loss": weigh(loss_B, self.weights(batch, train)),
            # A share of examples: class weights are for the loss alone.
            "accuracy": accuracy(outputs, labels_B, batch.get("weight")),
        }

    def logits_of(self, outputs: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """Returns logits (B, K) and what makes logits of them, as `LanguageModelling` does."""
        return _logits(outputs), lambda logits: logits

    def in_parts(self, score: Callable, outputs: jax.Array, targets: Any) -> tuple[Any, Any]:
        """Returns `score(logits, *targets)` of logits (B, K): in one part."""
        return score(_logits(outputs), *targets)

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns "label" (B,) int32, the likeliest class, and "probability" (B, K) float32."""
        outputs = _logits(outputs)
        return {
            "label": outputs.argmax(-1).astype(jnp.int32),
            # In float32: bfloat16 would make ties, which ROC AUC counts as halves.
            "probability": jax.nn.softmax(outputs.astype(jnp.float32)),
        }

    def named(
        self, predictions: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns "class" (B,), the name of "label"; "" where it has none."""
        known = dict(enumerate(names))
        return {"class": np.array([known.get(int(k), "") for k in predictions["label"]])}

    def check(self, batch: Batch) -> None:
        """Raises DataError for a missing column, or labels outside the model's outputs."""
        outputs = self.outputs
        labels_B = column(batch, self.label, "task.label")
        if "weight" in batch:  # what has no weight may hold anything
            labels_B = labels_B[np.asarray(batch["weight"]) != 0]
        if labels_B.ndim > 1 and labels_B.dtype.kind == "f":
            self._check_shares(labels_B)
        else:
            check_labels(labels_B, outputs, "task.label")
        if self.class_weights and outputs and len(self.class_weights) != outputs:
            raise ConfigError(
                f"task.class_weights: {len(self.class_weights)} given; the model has {outputs} "
                "outputs, one weight each is needed."
            )

    def _check_shares(self, shares_BxK: np.ndarray) -> None:
        shape, outputs = shares_BxK.shape, self.outputs
        if len(shape) != 2 or outputs not in (None, shape[1]):
            raise DataError(
                f"task.label: shares of classes {shape} where the model has {outputs} outputs."
            )
        sums = shares_BxK.sum(1)
        # All 0 is an example of which only the shape is known yet.
        if (shares_BxK < 0).any() or (abs(sums - 1) > 1e-3)[sums != 0].any():
            raise DataError("task.label: shares of classes must be 0 or more, and sum to 1.")
        if self.class_weights:
            raise ConfigError("task.class_weights: labels are shares; weights are for one class.")


def _logits(outputs: jax.Array) -> jax.Array:
    """Returns logits (B, K) as they are, and of one (B, 1) those of both classes, (B, 2)."""
    if outputs.shape[-1] != 1:
        return outputs
    return jnp.concatenate([jnp.zeros_like(outputs), outputs], axis=-1)
