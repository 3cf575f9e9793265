"""Language modelling: predict every next token."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsm import losses
from lsm.checks import require
from lsm.errors import ConfigError, DataError
from lsm.metrics import Weighted, accuracy, weigh
from lsm.models.attention import Mask
from lsm.models.experts import mixtures
from lsm.models.sequences import real_positions
from lsm.tasks.base import Batch, ModelState, Params, Rngs, Task
from lsm.tasks.columns import check_labels, column
from lsm.tasks.keywords import takes
from lsm.tasks.texts import LENGTH, SEGMENTS, row_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelling(Task):
    """Next-token cross-entropy in nats, with accuracy and perplexity.

    Attributes:
      model: maps int tokens (B, T) to logits (B, T, V).
      tokens: column NAME of int tokens (B, T + 1): inputs are all but the last, targets all but
        the first. A column "weight" (B, T) or (B,) weighs targets. Where there is NAME_segments
        (B, T + 1), attention does not leave a segment, and targets count that are of the segment
        of the token before, and not of segment 0, which is padding; else, where there is
        NAME_length (B,), those before the padding.
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

    def weights(self, batch: Batch, train: bool) -> jax.Array:
        """Returns the weights of targets (B, T) float32."""
        return self._targets(batch)[1]

    def forward(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: Rngs,
        train: bool,
        step: jax.Array,
    ) -> tuple[Any, ModelState]:
        """As `Task.forward`; the outputs are logits, or with chunks what makes logits in parts."""
        method = "features" if self.chunks > 1 else None
        inputs_BxT = self.inputs(batch)
        mask = self._mask(batch, inputs_BxT.shape[1])
        options = {} if mask is None else {"mask": mask}
        call = (params, model_state, inputs_BxT, rngs, train, method)
        outputs, changed = self.apply(*call, **options)
        if self.chunks > 1:
            # The head's variables go along: `metrics` has no parameters to make logits with.
            outputs = _Features(outputs, {"params": params, **model_state})
        return outputs, changed

    def _mask(self, batch: Batch, t: int) -> Mask | None:
        """Returns what T positions see, where that is not simply what comes before."""
        segments_BxT, real_BxT = None, None
        if self.tokens + SEGMENTS in batch:
            segments_BxT = batch[self.tokens + SEGMENTS][:, :-1]
        # Nobody sees the padding behind a text; but experts would be balanced, and filled, by it. A
        # text's last token, which has no target, is read only where the text is padded.
        if mixtures(self.model):
            if segments_BxT is not None:
                next_BxT = batch[self.tokens + SEGMENTS][:, 1:]
                real_BxT = (segments_BxT > 0) & (segments_BxT == next_BxT)
            elif self.tokens + LENGTH in batch:
                real_BxT = real_positions(batch[self.tokens + LENGTH] - 1, t)
        if segments_BxT is real_BxT is None:
            return None
        return Mask(causal=True, keys_BxS=real_BxT, segments_BxT=segments_BxT)

    def metrics(
        self, outputs: Any, batch: Batch, train: bool, step: jax.Array
    ) -> dict[str, Weighted]:
        """Returns "loss" and "accuracy", over targets."""
        totals, _ = self.in_parts(_score, outputs, self._targets(batch))
        return totals

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Returns what the model says of each target (B, T), given the tokens before it.

        "token" int32 is the likeliest, "log_probability" float32 that of the target itself, in
        nats.
        """
        return self.in_parts(_say, outputs, self._targets(batch))[1]

    def named(
        self, predictions: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns "text" (B,), the likeliest tokens put together: each comes after those given."""
        known = dict(enumerate(names))

        def joined(row: np.ndarray) -> str:
            return "".join(known.get(int(k), "") for k in row)

        text = getattr(names, "text", joined)  # of subwords, which know how to be put together
        return {"text": np.array([text(row) for row in predictions["token"]])}

    def logits_of(self, outputs: Any) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """Returns an array (B, T, ...) of outputs, and what makes logits of any part of T."""
        if self.chunks == 1:
            return outputs, lambda logits: logits
        head = functools.partial(self.model.apply, outputs.variables, method="logits")
        return outputs.features_BxTxD, head

    def in_parts(self, score: Callable, outputs: Any, targets: Any) -> tuple[Any, Any]:
        """Returns (sums, arrays (B, T)) of `score(logits, *targets)`, in `chunks` parts.

        Args:
          score: maps logits of S positions (B, S, V) and targets (B, S, ...) to such a pair.
          outputs: what `forward` returned.
          targets: arrays (B, T, ...).
        """
        if self.chunks == 1:
            return score(outputs, *targets)

        @jax.checkpoint
        # S = T / chunks positions; their logits (B, S, V) live in here alone.
        def one(features_BxSxD, *targets):
            logits = self.model.apply(outputs.variables, features_BxSxD, method="logits")
            return score(logits, *targets)

        def turn(total, part):
            sums, arrays = one(*part)
            return jax.tree.map(jnp.add, total, sums), arrays

        # (chunks, B, T / chunks, ...)
        parts = jax.tree.map(self._split, (outputs.features_BxTxD, *targets))
        shapes, _ = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        sums, arrays = jax.lax.scan(turn, zeros, parts)
        return sums, jax.tree.map(_merged, arrays)

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
        return targets_BxT, row_weights(batch) * self._real(batch, targets_BxT)

    def _real(self, batch: Batch, targets_BxT: jax.Array) -> jax.Array:
        """Float32 (B, T), 0 at targets that are padding or of another text than what is before."""
        if self.tokens + SEGMENTS in batch:
            segments_BxT1 = batch[self.tokens + SEGMENTS]
            same = segments_BxT1[:, 1:] == segments_BxT1[:, :-1]
            return (same & (segments_BxT1[:, 1:] > 0)).astype(jnp.float32)
        if self.tokens + LENGTH in batch:
            lengths_Bx1 = batch[self.tokens + LENGTH][:, None]
            return (jnp.arange(1, targets_BxT.shape[1] + 1) < lengths_Bx1).astype(jnp.float32)
        return jnp.ones(targets_BxT.shape, jnp.float32)

    def summary(self, totals: Mapping[str, Weighted]) -> dict[str, float]:
        """Adds perplexity, the exponential of the mean loss."""
        return with_perplexity(super().summary(totals))

    def check(self, batch: Batch) -> None:
        """Raises DataError for a missing column, unknown tokens or too long a sequence."""
        tokens_BxT1 = column(batch, self.tokens, "task.tokens")
        check_labels(tokens_BxT1, getattr(self.model, "vocabulary", None), "task.tokens")
        if self.tokens + SEGMENTS in batch and not takes(self.model, "mask"):
            raise DataError(
                f"task.model: {type(self.model).__name__} takes no mask, which keeps apart the "
                f"texts of column {self.tokens + SEGMENTS!r}."
            )
        context, length = getattr(self.model, "context", None), tokens_BxT1.shape[1] - 1
        if context is not None and length > context:
            raise DataError(
                f"task.tokens: sequences of {length} tokens where task.model.context is "
                f"{context}; shorten the data's length or raise the context."
            )


def with_perplexity(means: Mapping[str, float], name: str = "loss") -> dict[str, float]:
    """Returns figures with "perplexity", the exponential of the one of that name, added."""
    loss = means[name]
    # exp(710) is beyond float64, and raises.
    return {**means, "perplexity": math.inf if loss >= 700 else math.exp(loss)}


class _Features(NamedTuple):
    """What logits are made of: the model's last features, and the variables of its head."""

    features_BxTxD: jax.Array
    variables: Mapping[str, Any]


def _merged(x_CxBxS: jax.Array) -> jax.Array:
    """(chunks, B, S) as (B, S x chunks): what `LanguageModelling._split` took apart."""
    return jnp.moveaxis(x_CxBxS, 0, 2).reshape(x_CxBxS.shape[1], -1)


def _score(
    logits_BxTxV: jax.Array, targets_BxT: jax.Array, weights_BxT: jax.Array
) -> tuple[dict[str, Weighted], None]:
    loss_BxT = losses.softmax_cross_entropy(logits_BxTxV, targets_BxT)
    return {
        "loss": weigh(loss_BxT, weights_BxT),
        "accuracy": accuracy(logits_BxTxV, targets_BxT, weights_BxT),
    }, None


def _say(
    logits_BxTxV: jax.Array, targets_BxT: jax.Array, weights_BxT: jax.Array
) -> tuple[None, dict[str, jax.Array]]:
    del weights_BxT
    return None, {
        "token": logits_BxTxV.argmax(-1).astype(jnp.int32),
        "log_probability": -losses.softmax_cross_entropy(logits_BxTxV, targets_BxT),
    }
