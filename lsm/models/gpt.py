"""Decoder-only Transformer (GPT-2 form), scanned over its layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require, require_sizes
from lsm.errors import ConfigError
from lsm.models.initializers import Gaussian
from lsm.models.layers import Dtype


class GPT(nn.Module):
    """GPT-2's decoder (Radford et al. 2019): pre-norm blocks, learned positions, tied embedding.

    Initialised as GPT-2: normal(0.02), and 0.02 / sqrt(2 layers) for what writes into the
    residual stream. Parameters of the blocks are stacked along a leading layer axis.

    Attributes:
      vocabulary: number of tokens.
      layers: number of blocks.
      heads: attention heads; must divide `width`.
      width: size D of the residual stream.
      context: longest sequence.
      bias: whether dense layers and norms have biases.
      dropout: dropout after the embedding, on attention weights and on what each block adds.
      unroll: blocks compiled out in each turn of the scan: more are faster on a CPU and slower to
        compile.
      dtype: dtype of the computation; logits are float32.
    """

    vocabulary: int
    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 64
    bias: bool = False
    dropout: float = 0.0
    unroll: int = 1
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_sizes(self, "vocabulary", "layers", "heads", "width", "context", "unroll")
        require(self, dropout="[0, 1)")
        if self.width % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide width {self.width}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens_BxT: jax.Array, train: bool = False) -> jax.Array:
        """Maps int tokens (B, T), T <= context, to float32 logits (B, T, vocabulary)."""
        b, t = tokens_BxT.shape
        embed = nn.Embed(
            self.vocabulary,
            self.width,
            embedding_init=Gaussian(0.02),
            dtype=self.dtype,
            name="tokens",
        )
        positions = self.param("positions", Gaussian(0.02), (self.context, self.width), jnp.float32)
        x_BxTxD = embed(tokens_BxT) + positions[:t].astype(self.dtype)
        # Tokens in one row each: the gradient of a dense layer on (B, T, D) contracts two axes,
        # which XLA's CPU back end runs in a slow loop.
        x_NxD = x_BxTxD.reshape(b * t, self.width)
        x_NxD = nn.Dropout(self.dropout, deterministic=not train)(x_NxD)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.layers,
            unroll=self.unroll,
        )
        x_NxD, _ = blocks(
            length=t,
            heads=self.heads,
            bias=self.bias,
            dropout=self.dropout,
            layers=self.layers,
            dtype=self.dtype,
            name="blocks",
        )(x_NxD, train)
        x_NxD = layer_norm(self.bias, self.dtype, "norm")(x_NxD)
        return embed.attend(x_NxD).astype(jnp.float32).reshape(b, t, self.vocabulary)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on N = B x T tokens in one row each."""

    length: int
    heads: int
    bias: bool
    dropout: float
    layers: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x_NxD: jax.Array, train: bool) -> tuple[jax.Array, None]:
        """Returns the new residual stream (N, D), in the carry form of `nn.scan`."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x_NxD = x_NxD + drop(self._attention(self._norm("norm_1")(x_NxD), drop))
        return x_NxD + drop(self._mlp(self._norm("norm_2")(x_NxD))), None

    def _attention(self, x_NxD: jax.Array, drop: nn.Dropout) -> jax.Array:
        n, d = x_NxD.shape
        t, k = self.length, d // self.heads
        qkv_BxTx3xHxK = self._dense(3 * d, "qkv")(x_NxD).reshape(n // t, t, 3, self.heads, k)
        q_BxTxHxK, k_BxTxHxK, v_BxTxHxK = jnp.moveaxis(qkv_BxTx3xHxK, 2, 0)
        scores_BxHxTxS = jnp.einsum("bthk,bshk->bhts", q_BxTxHxK * k**-0.5, k_BxTxHxK)
        causal_TxS = jnp.tri(t, dtype=bool)
        scores_BxHxTxS = jnp.where(causal_TxS, scores_BxHxTxS.astype(jnp.float32), -jnp.inf)
        weights_BxHxTxS = drop(jax.nn.softmax(scores_BxHxTxS).astype(self.dtype))
        y_BxTxHxK = jnp.einsum("bhts,bshk->bthk", weights_BxHxTxS, v_BxTxHxK)
        return self._dense(d, "out", residual=True)(y_BxTxHxK.reshape(n, d))

    def _mlp(self, x_NxD: jax.Array) -> jax.Array:
        d = x_NxD.shape[-1]
        h_NxF = nn.gelu(self._dense(4 * d, "up")(x_NxD))
        return self._dense(d, "down", residual=True)(h_NxF)

    def _norm(self, name: str) -> nn.LayerNorm:
        return layer_norm(self.bias, self.dtype, name)

    def _dense(self, width: int, name: str, residual: bool = False) -> nn.Dense:
        std = 0.02 / (2 * self.layers) ** 0.5 if residual else 0.02
        return nn.Dense(
            width, use_bias=self.bias, dtype=self.dtype, kernel_init=Gaussian(std), name=name
        )


def layer_norm(bias: bool, dtype: Dtype, name: str) -> nn.LayerNorm:
    """Returns a layer norm whose variance takes two passes: exact, and faster on a CPU."""
    return nn.LayerNorm(use_bias=bias, dtype=dtype, use_fast_variance=False, name=name)
