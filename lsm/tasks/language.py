"""Language modelling: predict every next token."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from lsm import losses
from lsm.checks import require
from lsm.errors import ConfigError, DataError
from lsm.metrics import Weighted, accuracy, weigh
from lsm.tasks.base import Batch, LossOutput, ModelState, Params, Task, check_labels, column


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelling(Task):
    """Next-token cross-entropy in nats, with accuracy and perplexity.

    Attributes:
      model: maps int tokens (B, T) to logits (B, T, V).
      tokens: column of int tokens (B, T + 1): inputs are all but the last, targets all but the
        first. A column "weight" (B, T) or (B,) weighs targets.
      chunks: parts of the sequence whose logits are computed one after the other, and again in
        the backward pass: the array (B, T, V) never exists whole, which for large vocabularies is
        most of the memory. Must divide T; the model needs the methods `features` and `logits`.
    """

    unit: ClassVar[str] = "tokens"
    tokens: str = "tokens"
    chunks: int = 1

    def __post_init__(self):
        require(self, chunks="[1, inf)")
        if self.chunks > 1 and not hasattr(self.model, "features"):
            raise ConfigError(
                f"task.chunks: {type(self.model).__name__} cannot give its logits in parts; use 1."
            )

    def inputs(self, batch: Batch) -> jax.Array:
        """Returns tokens (B, T)."""
        return column(batch, self.tokens, "task.tokens")[:, :-1]

    def metrics(self, outputs: jax.Array, batch: Batch, train: bool) -> dict[str, Weighted]:
        """Returns "loss" and "accuracy", over targets."""
        return _score(outputs, *self._targets(batch))

    def loss(
        self, params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, LossOutput]:
        """As `Task.loss`; what the model sows into "losses" (B,) is added, weighed by targets."""
        outputs, new_state = self.model.apply(
            {"params": params, **model_state},
            self.inputs(batch),
            train=True,
            rngs={"dropout": key},
            mutable=[*model_state, "losses"],
            method="features" if self.chunks > 1 else None,
        )
        sown = new_state.pop("losses", {})
        metrics = self._measure(outputs, params, batch)
        loss = metrics["loss"].sum
        weights_BxT = self._targets(batch)[1]
        for name, (value_B,) in sown.items():
            metrics[name] = weigh(
                jnp.broadcast_to(value_B[:, None], weights_BxT.shape), weights_BxT
            )
            loss += metrics[name].sum
        return loss, LossOutput(metrics, new_state)

    def evaluate(
        self, params: Params, model_state: ModelState, batch: Batch
    ) -> dict[str, Weighted]:
        """As `Task.evaluate`."""
        outputs = self.model.apply(
            {"params": params, **model_state},
            self.inputs(batch),
            method="features" if self.chunks > 1 else None,
        )
        return self._measure(outputs, params, batch)

    def _measure(self, outputs: jax.Array, params: Params, batch: Batch) -> dict[str, Weighted]:
        """The metrics, from logits or, with chunks, from features (B, T, D)."""
        targets_BxT, weights_BxT = self._targets(batch)
        if self.chunks == 1:
            return _score(outputs, targets_BxT, weights_BxT)

        @jax.checkpoint
        def one(features_BxSxD, targets_BxS, weights_BxS):
            logits = self.model.apply({"params": params}, features_BxSxD, method="logits")
            return _score(logits, targets_BxS, weights_BxS)

        def turn(total, part):
            return jax.tree.map(jnp.add, total, one(*part)), None

        parts = jax.tree.map(self._split, (outputs, targets_BxT, weights_BxT))
        shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(turn, zeros, parts)[0]

    def _split(self, x_BxT: jax.Array) -> jax.Array:
        """(B, T, ...) as (chunks, B, T / chunks, ...).

        Chunk i holds positions i, i + chunks, ...: a sequence that is split over devices stays so.
        """
        b, t, *rest = x_BxT.shape
        if t % self.chunks:
            raise ConfigError(f"task.chunks: {self.chunks} does not divide the {t} positions.")
        return jnp.moveaxis(x_BxT.reshape(b, t // self.chunks, self.chunks, *rest), 2, 0)

    def _targets(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Targets (B, T), and their weights (B, T) float32."""
        targets_BxT = column(batch, self.tokens, "task.tokens")[:, 1:]
        weights = batch.get("weight", jnp.ones(()))
        if weights.ndim == 1:
            weights = weights[:, None]
        return targets_BxT, jnp.broadcast_to(weights, targets_BxT.shape)

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


def _score(
    logits_BxTxV: jax.Array, targets_BxT: jax.Array, weights_BxT: jax.Array
) -> dict[str, Weighted]:
    loss_BxT = losses.softmax_cross_entropy(logits_BxTxV, targets_BxT)
    return {
        "loss": weigh(loss_BxT, weights_BxT),
        "accuracy": accuracy(logits_BxTxV, targets_BxT, weights_BxT),
    }
