"""Encoder-decoder Transformer: one text is read, another is written (arXiv:1706.03762)."""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require_choice, require_sizes
from lsm.cpu import dot_rows
from lsm.errors import ConfigError
from lsm.mesh import Fsdp, Layout, Rule
from lsm.models import stack
from lsm.models.attention import Mask, positions
from lsm.models.block import BlockOutput
from lsm.models.cache import Caches
from lsm.models.embedding import Embedding, sinusoids
from lsm.models.gpt import CAUSAL
from lsm.models.initializers import Gaussian
from lsm.models.sequences import Sequences
from lsm.models.transformer import Transformer


class EncoderDecoder(nn.Module):
    """A Transformer that reads a source text and writes a target text.

    Tokens are embedded times sqrt(width), and get positions unless `theta` turns them in attention.
    Padding of the source is never seen; what stands behind a target's end alters nothing before it.

    Attributes:
      vocabulary: number of tokens, of both texts.
      encoder: the blocks that read.
      decoder: the blocks that write, with attention to what was read; as wide as the encoder.
      context: longest text, of each.
      tied: source, target and logits have one table; else each has its own.
      positions: "sinusoid", or "learned" for each side; of a side without `theta`.
    """

    layout: ClassVar[Layout] = dataclasses.replace(
        stack.LAYOUT,
        rules=(
            *stack.LAYOUT.rules,
            Rule(r"(tokens|source|target)/embedding$", ("tensor", "fsdp"), (None, "fsdp")),
            Rule(r"head/kernel$", ("fsdp", "tensor"), ("fsdp", None)),
            Rule(r".*", Fsdp()),
        ),
    )

    vocabulary: int
    encoder: Transformer = Transformer()
    decoder: Transformer = Transformer()
    context: int = 128
    tied: bool = True
    positions: Literal["sinusoid", "learned"] = "sinusoid"

    def __post_init__(self):
        require_sizes(self, "vocabulary", "context")
        require_choice(self, "positions", "sinusoid", "learned")
        if self.encoder.width != self.decoder.width:
            raise ConfigError(
                f"EncoderDecoder.decoder: width {self.decoder.width} where the encoder has "
                f"{self.encoder.width}; one width is needed."
            )
        super().__post_init__()

    def setup(self):
        """Makes the parts; the blocks' parameters lie under "encoding", "decoding"."""
        if self.tied:
            self.tokens = self._embedding()
        else:
            self.source, self.target = self._embedding(), self._embedding()
            self.head = nn.Dense(
                self.vocabulary,
                use_bias=False,
                dtype=self.decoder.dtype,
                kernel_init=Gaussian(0.02),
                dot_general=dot_rows,
            )
        self.encoding = _Side(self.encoder, self.context, self.positions)
        self.decoding = _Side(self.decoder, self.context, self.positions)

    def __call__(
        self,
        texts: tuple[Sequences, jax.Array],
        train: bool = False,
        target_mask: Mask = CAUSAL,
    ) -> jax.Array:
        """Maps (source, target tokens (B, T)) to float32 logits (B, T, V) of what comes next.

        What a target's padding is, which experts are not to be given, only `target_mask` can say.
        """
        source, target_BxT = texts
        memory = {
            "memory_BxSxD": self.encode(source, train),
            "memory_mask": Mask(keys_BxS=source.real_BxT),
        }
        return self._write(target_BxT, target_mask, train, **memory)[0]

    def encode(self, source: Sequences, train: bool = False) -> jax.Array:
        """Maps source texts (B, S) to what the decoder reads, the memory (B, S, D)."""
        table = self.tokens if self.tied else self.source
        mask = Mask(keys_BxS=source.real_BxT)
        x_BxSxD, y = self.encoding(table.table()[source.tokens_BxT], mask, train)
        self._balance(y, self.encoder)
        return x_BxSxD

    def cache(self, batch_size: int, length: int) -> Caches:
        """Returns an empty cache for `length` target positions, for `decode`.

        Raises:
          ConfigError: positions end before.
        """
        if length > self.context:
            raise ConfigError(f"cache: {length} positions where context is {self.context}.")
        return self.decoder.cache(batch_size, length)

    def decode(
        self,
        tokens_BxT: jax.Array,
        cache: Caches,
        memory_mask: Mask,
        memory_BxSxD: jax.Array | None = None,
    ) -> tuple[jax.Array, Caches]:
        """Maps the next target tokens to logits (B, T, V), and the cache with them.

        The first call has the memory, whose keys and values are in the cache from then on. After
        `cache.branched` there are N rows of tokens for each of memory and mask.
        """
        memory = {"memory_BxSxD": memory_BxSxD, "memory_mask": memory_mask}
        y, out = self._write(tokens_BxT, CAUSAL, cache=cache, **memory)
        return y, out.cache

    def attention(self, texts: tuple[Sequences, jax.Array]) -> jax.Array:
        """Returns how the last block's heads attend to the source (B, H, T, S), float32.

        Row t is for the choice of the token after target token t.
        """
        source, target_BxT = texts
        mask = Mask(keys_BxS=source.real_BxT)
        options = {"memory_BxSxD": self.encode(source), "memory_mask": mask, "maps": True}
        return self._write(target_BxT, CAUSAL, **options)[1].cross_maps_BxHxTxS[-1]

    def _write(
        self, tokens_BxT: jax.Array, mask: Mask, train: bool = False, **options
    ) -> tuple[jax.Array, BlockOutput]:
        """Returns the logits, and what else the decoder's blocks give."""
        table = self.tokens if self.tied else self.target
        x_BxTxD, y = self.decoding(table.table()[tokens_BxT], mask, train, **options)
        self._balance(y, self.decoder)
        logits = table.logits(x_BxTxD) if self.tied else self.head(x_BxTxD)
        return logits.astype(jnp.float32), y

    def _embedding(self) -> Embedding:
        width, dtype = self.encoder.width, self.encoder.dtype
        # After the factor sqrt(width) its vectors are of size 1 in each place.
        return Embedding(self.vocabulary, width, dtype=dtype, embedding_init=Gaussian(width**-0.5))

    def _balance(self, y: BlockOutput, config: Transformer) -> None:
        if config.experts and not self.is_initializing():  # as in GPT
            self.sow("losses", "balance", config.experts.balance * y.balance_B / config.layers)


class _Side(nn.Module):
    """Encoder or decoder after the table: scale, positions, dropout, blocks, and the last norm."""

    config: Transformer
    context: int
    positions: Literal["sinusoid", "learned"]

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, mask: Mask, train: bool, cache: Caches | None = None, **options
    ) -> tuple[jax.Array, BlockOutput]:
        """Returns features (B, T, D), and what the blocks gave; arguments are `Stack`'s."""
        config, (t, d) = self.config, x_BxTxD.shape[1:]
        if t > self.context:
            raise ConfigError(f"context: {self.context} positions at the most; {t} tokens given.")
        x_BxTxD = x_BxTxD * jnp.asarray(d**0.5, config.dtype)
        if config.theta is None:
            if self.positions == "learned":
                at_CxD = self.param("positions", Gaussian(0.02), (self.context, d), jnp.float32)
            else:
                at_CxD = jnp.asarray(sinusoids(self.context, d))
            at = at_CxD[positions(t, 0 if cache is None else cache.length)]
            # The barrier is for the gradient on a CPU, as in GPT.
            x_BxTxD = jax.lax.optimization_barrier(x_BxTxD + at.astype(config.dtype))
        x_BxTxD = nn.Dropout(config.dropout, deterministic=not train)(x_BxTxD)
        blocks = stack.Stack(config)
        nn.share_scope(self, blocks)  # so that its parameters are at "blocks"
        y = blocks(x_BxTxD, mask, train=train, cache=cache, **options)
        post = config.norm_position == "post"  # which leaves the stream normalised
        return y.x_BxTxD if post else config.normalise("norm_f")(y.x_BxTxD), y
