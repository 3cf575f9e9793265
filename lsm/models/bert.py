"""BERT (Devlin et al. 2018, arXiv:1810.04805): an encoder of texts, and the heads around it.

The encoder's parameters have the same paths under every head, so that what one has learnt starts
another.
"""

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
from lsm.models.attention import Mask
from lsm.models.embedding import Embedding
from lsm.models.initializers import Gaussian
from lsm.models.sequences import Sequences
from lsm.models.transformer import ACTIVATIONS, GATED, Transformer

BLOCKS = Transformer(
    layers=12,
    heads=12,
    width=768,
    norm_position="post",
    mlp="gelu_exact",
    bias=True,
    epsilon=1e-12,
    initializer=Gaussian(0.02),
    dropout=0.1,
)
"""Those of BERT base."""


class BERT(nn.Module):
    """The encoder: embeddings of tokens, positions and types, a norm, and blocks.

    Padding is never seen: what it holds alters nothing that is real. Dropout is on the embedding
    too. `lsm.models.families` has the published sizes.

    Attributes:
      vocabulary: number of tokens.
      transformer: the blocks; their norms come "post".
      context: longest sequence; positions are learned.
      types: number of types, as of the two texts of a pair.
    """

    layout: ClassVar[Layout] = dataclasses.replace(
        stack.LAYOUT,
        rules=(
            *stack.LAYOUT.rules,
            # As in GPT: 30522, for one, is divided by few numbers.
            Rule(r"tokens/embedding$", ("tensor", "fsdp"), otherwise=(None, "fsdp")),
            Rule(r".*", Fsdp()),
        ),
    )

    vocabulary: int = 30522
    transformer: Transformer = BLOCKS
    context: int = 512
    types: int = 2

    def __post_init__(self):
        require_sizes(self, "vocabulary", "context", "types")
        given = self.transformer.norm_position
        if given != "post":
            raise ConfigError(f'BERT.transformer.norm_position: {given!r} given; allowed: "post".')
        super().__post_init__()

    def setup(self):
        """Makes the parts; the blocks' parameters lie under "blocks"."""
        config, init = self.transformer, Gaussian(0.02)
        self.tokens = Embedding(
            self.vocabulary, config.width, dtype=config.dtype, embedding_init=init
        )
        self.segments = nn.Embed(self.types, config.width, embedding_init=init)
        self.learned = self.param("positions", init, (self.context, config.width), jnp.float32)
        self.norm = config.normalise()
        self.drop = nn.Dropout(config.dropout)
        self.stack = stack.Stack(config)
        nn.share_scope(self, self.stack)  # so that its parameters are at "blocks"

    def __call__(self, texts: Sequences, train: bool = False) -> jax.Array:
        """Maps texts (B, T), T <= context, to features (B, T, D); those of padding mean nothing.

        With experts, the load-balancing loss (B,) is sown as "balance" into "losses".

        Raises:
          ConfigError: the texts are longer than the context.
        """
        config, t = self.transformer, texts.tokens_BxT.shape[1]
        if t > self.context:
            raise ConfigError(f"context: {self.context} positions are learned; {t} tokens given.")
        types_BxT = texts.types_BxT
        if types_BxT is None:
            types_BxT = jnp.zeros_like(texts.tokens_BxT)
        kinds_BxTxD = self.segments.embedding.astype(config.dtype)[types_BxT]
        # The barrier is for the gradient on a CPU, as in GPT.
        x_BxTxD = jax.lax.optimization_barrier(
            self.tokens.table()[texts.tokens_BxT]
            + kinds_BxTxD
            + self.learned[:t].astype(config.dtype)
        )
        x_BxTxD = self.drop(self.norm(x_BxTxD), deterministic=not train)
        y = self.stack(x_BxTxD, self._mask(texts.real_BxT), train=train)
        if config.experts and not self.is_initializing():  # as in GPT
            self.sow("losses", "balance", config.experts.balance * y.balance_B / config.layers)
        return y.x_BxTxD

    def _mask(self, real_BxT: jax.Array) -> Mask:
        if self.transformer.experts:  # which must not count padding
            return Mask(keys_BxS=real_BxT)
        # As segments: what is real sees the same, and the kernel on TPUs takes them.
        return Mask(segments_BxT=real_BxT.astype(jnp.int32))


class _Head(nn.Module):
    """A head on an encoder; the parameters of both lie side by side."""

    encoder: BERT

    def setup(self):
        """Shares the encoder's scope."""
        nn.share_scope(self, self.encoder)

    @property
    def layout(self) -> Layout:
        """The encoder's own."""
        return self.encoder.layout

    @property
    def vocabulary(self) -> int:
        """The encoder's own."""
        return self.encoder.vocabulary

    @property
    def types(self) -> int:
        """The encoder's own."""
        return self.encoder.types

    def _dense(self, features: int, name: str, dtype: str = "float32") -> nn.Dense:
        options = {"dtype": dtype, "kernel_init": Gaussian(0.02), "dot_general": dot_rows}
        return nn.Dense(features, name=name, **options)

    def _dropped(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dropout(self.encoder.transformer.dropout, deterministic=not train)(x)


class Classifier(_Head):
    """Classes of texts, or of pairs of texts.

    Attributes:
      encoder: reads the texts.
      outputs: number of classes; 1 is the logit of class 1 against class 0.
      pooling: what the head reads: "cls", the first token through BERT's dense layer with tanh; or
        the "mean" of the tokens that are no padding.
    """

    outputs: int = 2
    pooling: Literal["cls", "mean"] = "cls"

    def __post_init__(self):
        require_sizes(self, "outputs")
        require_choice(self, "pooling", "cls", "mean")
        super().__post_init__()

    @nn.compact
    def __call__(self, texts: Sequences, train: bool = False) -> jax.Array:
        """Maps texts to float32 logits (B, outputs)."""
        x_BxTxD = self.encoder(texts, train)
        if self.pooling == "mean":
            x_BxD = mean(x_BxTxD, texts.real_BxT)
        else:
            config = self.encoder.transformer
            x_BxD = jnp.tanh(self._dense(config.width, "pooler", config.dtype)(x_BxTxD[:, 0]))
        return self._dense(self.outputs, "head")(self._dropped(x_BxD, train))


class TokenClassifier(_Head):
    """Classes of tokens; with two outputs also where a span starts and ends.

    Attributes:
      encoder: reads the texts.
      outputs: number of classes.
    """

    outputs: int = 2

    def __post_init__(self):
        require_sizes(self, "outputs")
        super().__post_init__()

    @nn.compact
    def __call__(self, texts: Sequences, train: bool = False) -> jax.Array:
        """Maps texts (B, T) to float32 logits (B, T, outputs)."""
        x_BxTxD = self._dropped(self.encoder(texts, train), train)
        return self._dense(self.outputs, "head")(x_BxTxD)


class MaskedLM(_Head):
    """What stands at each position: a dense layer, an activation, a norm, the embedding's table.

    The activation is that of the blocks; where their MLP is gated, GELU by erf.

    Attributes:
      encoder: reads the texts.
    """

    def setup(self):
        """Makes the parts of the head."""
        super().setup()
        config = self.encoder.transformer
        self.transform = self._dense(config.width, None, config.dtype)
        self.transform_norm = config.normalise()
        shape = (self.encoder.vocabulary,)
        self.bias = self.param("output_bias", nn.initializers.zeros, shape, jnp.float32)

    def __call__(self, texts: Sequences, train: bool = False) -> jax.Array:
        """Maps texts (B, T) to float32 logits (B, T, vocabulary)."""
        return self.logits(self.features(texts, train))

    def features(self, texts: Sequences, train: bool = False) -> jax.Array:
        """Maps texts (B, T) to what `logits` reads (B, T, D)."""
        return self.encoder(texts, train)

    def logits(self, x_BxPxD: jax.Array) -> jax.Array:
        """Maps features of any P positions to float32 logits (B, P, vocabulary)."""
        mlp = self.encoder.transformer.mlp
        h_BxPxD = ACTIVATIONS["gelu_exact" if mlp in GATED else mlp](self.transform(x_BxPxD))
        y_BxPxV = self.encoder.tokens.logits(self.transform_norm(h_BxPxD))
        return y_BxPxV.astype(jnp.float32) + self.bias


class Embedder(_Head):
    """One vector a text, of length 1: the mean of its tokens (Sentence-BERT, arXiv:1908.10084).

    Attributes:
      encoder: reads the texts.
    """

    @nn.compact
    def __call__(self, texts: Sequences, train: bool = False) -> dict[str, jax.Array]:
        """Maps texts to "embedding" (B, D) float32; zeros for an empty text."""
        x_BxD = mean(self.encoder(texts, train), texts.real_BxT)
        # The bound, as in PyTorch's `normalize`, lies in the root: at 0 the gradient is none.
        squares_Bx1 = jnp.square(x_BxD).sum(-1, keepdims=True)
        return {"embedding": x_BxD * jax.lax.rsqrt(jnp.maximum(squares_Bx1, 1e-24))}


def mean(x_BxTxD: jax.Array, real_BxT: jax.Array) -> jax.Array:
    """Returns the mean (B, D) float32 over what is real; 0 of an empty text."""
    sums_BxD = jnp.where(real_BxT[..., None], x_BxTxD, 0).astype(jnp.float32).sum(1)
    return sums_BxD / jnp.maximum(real_BxT.sum(1), 1)[:, None]
