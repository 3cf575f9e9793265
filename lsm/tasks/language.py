"""Language modelling: predict every next token."""

import dataclasses
import math
from collections.abc import Mapping

import jax

from lsm import losses
from lsm.errors import DataError
from lsm.metrics import Weighted, accuracy, weigh
from lsm.tasks.base import Batch, Task, check_labels, column


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelling(Task):
    """Next-token cross-entropy in nats, with accuracy and perplexity.

    Attributes:
      model: maps int tokens (B, T) to logits (B, T, V).
      tokens: column of int tokens (B, T + 1): inputs are all but the last, targets all but the
        first. A column "weight" (B, T) or (B,) weighs targets.
    """

    tokens: str = "tokens"

    def inputs(self, batch: Batch) -> jax.Array:
        """Returns tokens (B, T)."""
        return column(batch, self.tokens, "task.tokens")[:, :-1]

    def metrics(self, outputs: jax.Array, batch: Batch, train: bool) -> dict[str, Weighted]:
        """Returns "loss" and "accuracy", over targets."""
        targets_BxT = column(batch, self.tokens, "task.tokens")[:, 1:]
        weights = batch.get("weight")
        if weights is not None and weights.ndim == 1:
            weights = weights[:, None]
        loss_BxT = losses.softmax_cross_entropy(outputs, targets_BxT)
        return {
            "loss": weigh(loss_BxT, weights),
            "accuracy": accuracy(outputs, targets_BxT, weights),
        }

    def summary(self, totals: Mapping[str, Weighted]) -> dict[str, float]:
        """Adds perplexity, the exponential of the mean loss."""
        means = super().summary(totals)
        loss = means["loss"]
        return means | {"perplexity": math.exp(loss) if loss < 700 else math.inf}

    def check(self, batch: Batch) -> None:
        """Raises DataError for a missing column, unknown tokens or too long a sequence."""
        tokens_BxT1 = column(batch, self.tokens, "task.tokens")
        check_labels(tokens_BxT1, getattr(self.model, "vocabulary", None), "task.tokens")
        context, length = getattr(self.model, "context", None), tokens_BxT1.shape[1] - 1
        if context is not None and length > context:
            raise DataError(
                f"task.tokens: sequences of {length} tokens where task.model.context is "
                f"{context}; shorten the data's length or raise the context."
            )
