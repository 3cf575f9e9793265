"""Decoder-only Transformer: GPT-2, Llama, Qwen and Gemma, dense or with a mixture of experts."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require, require_sizes
from lsm.cpu import dot_rows
from lsm.errors import ConfigError
from lsm.mesh import BATCH_AXES, Fsdp, Layout, Rule, constrain, ways
from lsm.models import stack
from lsm.models.attention import Mask, capped, positions
from lsm.models.cache import Caches
from lsm.models.embedding import Embedding
from lsm.models.initializers import Gaussian
from lsm.models.transformer import Transformer

CAUSAL = Mask(causal=True)


class GPT(nn.Module):
    """A decoder with embedding and head; `lsm.models.families` has the published ones.

    Positions are learned where `transformer.theta` is None, as in GPT-2 (Radford et al. 2019).
    Dropout is on the embedding too.

    Attributes:
      vocabulary: number of tokens.
      transformer: the blocks.
      context: longest sequence.
      tied: logits from the embedding's own table.
      scale_embedding: multiply embeddings by sqrt(width) (Gemma).
      logit_softcap: bound of logits (Gemma 2); None for none.
    """

    layout: ClassVar[Layout] = dataclasses.replace(
        stack.LAYOUT,
        rules=(
            *stack.LAYOUT.rules,
            # Many vocabularies are odd numbers (GPT-2's is 50257): those stay whole along V.
            Rule(r"tokens/embedding$", ("tensor", "fsdp"), otherwise=(None, "fsdp")),
            Rule(r"head/kernel$", ("fsdp", "tensor"), otherwise=("fsdp", None)),
            Rule(r".*", Fsdp()),
        ),
    )

    vocabulary: int
    transformer: Transformer = Transformer()
    context: int = 64
    tied: bool = True
    scale_embedding: bool = False
    logit_softcap: float | None = None

    def __post_init__(self):
        require_sizes(self, "vocabulary", "context")
        require(self, logit_softcap="(0, inf)")
        super().__post_init__()

    def setup(self):
        """Makes the parts; the blocks' parameters lie under "blocks"."""
        config = self.transformer
        self.tokens = Embedding(
            self.vocabulary, config.width, dtype=config.dtype, embedding_init=Gaussian(0.02)
        )
        if config.theta is None:
            shape = (self.context, config.width)
            self.learned = self.param("positions", Gaussian(0.02), shape, jnp.float32)
        self.stack = stack.Stack(config)
        # So that its parameters are at "blocks", not "stack/blocks".
        nn.share_scope(self, self.stack)
        self.drop = nn.Dropout(config.dropout)
        if config.norm_position != "post":  # which leaves the stream normalised
            self.norm_f = config.normalise()
        if not self.tied:
            self.head = nn.Dense(
                self.vocabulary,
                use_bias=False,
                dtype=config.dtype,
                kernel_init=Gaussian(0.02),
                dot_general=dot_rows,
            )

    def __call__(
        self, tokens_BxT: jax.Array, train: bool = False, mask: Mask = CAUSAL
    ) -> jax.Array:
        """Maps int tokens (B, T), T <= context, to float32 logits (B, T, vocabulary).

        With `Mask(causal=True, segments_BxT=...)` each segment of a row is a text of its own, as
        if it stood alone; learned positions start again with each.
        """
        return self.logits(self.features(tokens_BxT, train, mask))

    def features(
        self, tokens_BxT: jax.Array, train: bool = False, mask: Mask = CAUSAL
    ) -> jax.Array:
        """Maps tokens (B, T) to what `logits` reads (B, T, D).

        With experts, the load-balancing loss (B,) is sown as "balance" into "losses".
        """
        return self._features(tokens_BxT, train, mask, None)[0]

    def cache(self, batch_size: int, length: int) -> Caches:
        """Returns an empty cache for `length` positions, for `decode`.

        Raises:
          ConfigError: learned positions end before.
        """
        if self.transformer.theta is None and length > self.context:
            raise ConfigError(f"cache: {length} positions where context is {self.context}.")
        return self.transformer.cache(batch_size, length)

    def decode(
        self, tokens_BxT: jax.Array, cache: Caches, mask: Mask = CAUSAL
    ) -> tuple[jax.Array, Caches]:
        """Maps the next tokens, a prompt or one each, to logits (B, T, V) and the cache with them.

            logits, cache = model.apply(variables, tokens_BxT, cache, method="decode")

        The logits are those of the whole text at once, as long as the cache has room; but experts
        with a capacity count their places anew in each call.
        """
        x_BxTxD, cache = self.extend(tokens_BxT, cache, mask)
        return self.logits(x_BxTxD), cache

    def extend(
        self, tokens_BxT: jax.Array, cache: Caches, mask: Mask = CAUSAL
    ) -> tuple[jax.Array, Caches]:
        """Returns what `decode` does, with features (B, T, D) in place of logits.

        Of a prompt only the last position's logits are needed, and there are V of them at each.
        """
        return self._features(tokens_BxT, False, mask, cache)

    def logits(self, x_BxTxD: jax.Array) -> jax.Array:
        """Maps features to float32 logits (B, T, vocabulary)."""
        y = self.tokens.logits(x_BxTxD) if self.tied else self.head(x_BxTxD)
        return capped(y.astype(jnp.float32), self.logit_softcap)

    def _features(
        self, tokens_BxT: jax.Array, train: bool, mask: Mask, cache: Caches | None
    ) -> tuple[jax.Array, Caches | None]:
        config = self.transformer
        x_BxTxD = self.tokens.table()[tokens_BxT]
        if self.scale_embedding:
            # The factor is rounded to the dtype first, as in Hugging Face's Gemma.
            x_BxTxD = x_BxTxD * jnp.asarray(config.width**0.5, config.dtype)
        if config.theta is None:
            learned = self._positions(tokens_BxT.shape[1], mask, cache)
            # The barrier is for the gradient: XLA's CPU back end would sum all layers' parts of it
            # again for each position that it is summed over.
            x_BxTxD = jax.lax.optimization_barrier(x_BxTxD + learned.astype(config.dtype))
        x_BxTxD = self.drop(x_BxTxD, deterministic=not train)
        y = self.stack(x_BxTxD, mask, train=train, cache=cache)
        # Sown while initialising, it would be one of the variables, and later calls append to it.
        if config.experts and not self.is_initializing():
            weight = config.experts.balance
            self.sow("losses", "balance", weight * y.balance_B / config.layers)
        # Stages that are done with the layers share the rest of the work, by rows.
        everyone = (*BATCH_AXES, "pipeline")
        rows = everyone if tokens_BxT.shape[0] % ways(*everyone) == 0 else BATCH_AXES
        x_BxTxD = constrain(y.x_BxTxD, rows, "sequence", None)
        return (x_BxTxD if config.norm_position == "post" else self.norm_f(x_BxTxD)), y.cache

    def _positions(self, t: int, mask: Mask, cache: Caches | None) -> jax.Array:
        """The learned positions (T, D) or (B, T, D)."""
        if cache is not None:
            return self.learned[positions(t, cache.length)]
        if t > self.context:
            raise ConfigError(f"context: {self.context} positions are learned; {t} tokens given.")
        segments_BxT, here_T = mask.segments_BxT, jnp.arange(t)
        if segments_BxT is None:
            return self.learned[:t]
        # Each position less the one where its segment began, a running maximum.
        new = jnp.diff(segments_BxT, axis=1, prepend=segments_BxT[:, :1] - 1) != 0
        return self.learned[here_T - jax.lax.cummax(jnp.where(new, here_T, 0), axis=1)]
