"""Classification of texts by recurrent networks."""

import functools
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require, require_sizes
from lsm.cpu import dot_rows
from lsm.mesh import Fsdp, Layout, Rule
from lsm.models.initializers import HE, XAVIER, Gaussian
from lsm.models.layers import Dtype
from lsm.models.recurrent import Cell, Recurrent
from lsm.models.sequences import Sequences, real_positions

DEVIATION = Gaussian(0.05 / 3**0.5)
"""Of embeddings: that of Keras's, which are uniform within 0.05."""


class TextClassifier(nn.Module):
    """Embedding, convolutions that halve the text, recurrent layers, pooling, a dense layer.

    Padding is no part of anything: logits are the same however much of it there is. Two LSTMs on an
    embedding, as in Keras's tutorials, are `TextClassifier(vocabulary=10_000, outputs=1)`.

    Attributes:
      vocabulary: number of tokens.
      outputs: number of classes; 1 is the logit of class 1 against class 0.
      width: size of the embedding.
      convolutions: filters of each stage of [convolution over 3 tokens, ReLU, max-pool over 2], a
        stage for each number (LSTM after CNN: Zhou et al. 2015, arXiv:1511.08630).
      units: of each recurrent layer; of each direction, where there are two.
      cell: "lstm", "gru" or "rnn".
      bidirectional: in both directions.
      pooling: what the dense layer reads of the last recurrent layer: its "last" state, or the
        "mean", the "max", or by "attention" the weighted mean of its states over the text; the
        weights are learned (Yang et al. 2016, doi:10.18653/v1/N16-1174).
      dropout: share of features dropped while training: of the embedding, and after each recurrent
        layer (the last one's after pooling).
      word_dropout: share of words dropped whole while training (Iyyer et al. 2015).
      dtype: dtype of the computation.
    """

    layout: ClassVar[Layout] = Layout(
        # What is in the loop over time stays whole along "tensor": it would wait in every step.
        rules=(
            Rule(r"tokens/embedding$", ("fsdp", "tensor"), otherwise=Fsdp()),
            Rule(r"Conv_\d+/kernel$", (None, "fsdp", "tensor"), otherwise=Fsdp()),
            Rule(".*", Fsdp()),
        ),
        axes=("tensor",),
    )

    vocabulary: int
    outputs: int = 2
    width: int = 32
    convolutions: tuple[int, ...] = ()
    units: tuple[int, ...] = (128, 128)
    cell: Cell = "lstm"
    bidirectional: bool = False
    pooling: Literal["last", "mean", "max", "attention"] = "last"
    dropout: float = 0.0
    word_dropout: float = 0.0
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_sizes(self, "vocabulary", "outputs", "width", "convolutions", "units")
        require(self, dropout="[0, 1)", word_dropout="[0, 1)")
        super().__post_init__()

    @nn.compact
    def __call__(self, texts: Sequences, train: bool = False) -> jax.Array:
        """Maps texts to float32 logits (B, outputs)."""

        def dropped(x: jax.Array, rate: float, dims: tuple[int, ...] = ()) -> jax.Array:
            return nn.Dropout(rate, dims, deterministic=not train)(x)

        embed = nn.Embed(
            self.vocabulary, self.width, dtype=self.dtype, embedding_init=DEVIATION, name="tokens"
        )
        x_BxTxD, lengths_B = embed(texts.tokens_BxT), texts.lengths_B
        x_BxTxD = dropped(dropped(x_BxTxD, self.word_dropout, dims=(2,)), self.dropout)
        for filters in self.convolutions:
            x_BxTxD, lengths_B = self._convolve(x_BxTxD, lengths_B, filters)
        for i, units in enumerate(self.units):
            x_BxTxD = dropped(x_BxTxD, self.dropout) if i else x_BxTxD
            layer = Recurrent(units, self.cell, self.bidirectional, self.dtype)
            x_BxTxD, last_BxD = layer(x_BxTxD, lengths_B)
        pooled_BxD = last_BxD if self.pooling == "last" else self._pool(x_BxTxD, lengths_B)
        pooled_BxD = dropped(pooled_BxD.astype(jnp.float32), self.dropout)
        return nn.Dense(self.outputs, kernel_init=XAVIER)(pooled_BxD)

    def _convolve(
        self, x_BxTxC: jax.Array, lengths_B: jax.Array, filters: int
    ) -> tuple[jax.Array, jax.Array]:
        """Returns a stage's features (B, ceil(T / 2), filters), and how many of them are real."""
        convolve = nn.Conv(filters, (3,), dtype=self.dtype, kernel_init=HE)
        y_BxTxC = nn.relu(convolve(_cleared(x_BxTxC, lengths_B)))
        # Zeros alter no maximum of what ReLU gives.
        y_BxTxC = jnp.pad(_cleared(y_BxTxC, lengths_B), ((0, 0), (0, y_BxTxC.shape[1] % 2), (0, 0)))
        b, t, c = y_BxTxC.shape
        return y_BxTxC.reshape(b, t // 2, 2, c).max(2), (lengths_B + 1) // 2

    def _pool(self, x_BxTxD: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """Returns the pooled states (B, D) of the real positions; 0 of an empty text."""
        if self.pooling == "mean":
            # The states of padding are 0.
            sums_BxD = x_BxTxD.astype(jnp.float32).sum(1)
            return sums_BxD / jnp.maximum(lengths_B, 1)[:, None]
        real_BxTx1 = real_positions(lengths_B, x_BxTxD.shape[1])[..., None]
        if self.pooling == "max":
            highest_BxD = jnp.where(real_BxTx1, x_BxTxD, -jnp.inf).max(1)
            return jnp.where(lengths_B[:, None] > 0, highest_BxD, 0)
        dense = functools.partial(nn.Dense, dtype=self.dtype, dot_general=dot_rows)
        seen_BxTxD = nn.tanh(dense(x_BxTxD.shape[-1])(x_BxTxD))
        scores_BxTx1 = dense(1, use_bias=False)(seen_BxTxD).astype(jnp.float32)
        # No infinity: an empty text has equal weights, on states that are 0.
        scores_BxTx1 = jnp.where(real_BxTx1, scores_BxTx1, jnp.finfo(jnp.float32).min)
        return (jax.nn.softmax(scores_BxTx1, axis=1) * x_BxTxD).sum(1)


def _cleared(x_BxTxC: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Returns x with 0 in the padding."""
    real_BxT = real_positions(lengths_B, x_BxTxC.shape[1])
    return jnp.where(real_BxT[..., None], x_BxTxC, 0)
