"""Texts as a model reads them: tokens, and how many of them are no padding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sequences(NamedTuple):
    """A batch of sequences of different lengths, each padded behind its end.

    Attributes:
      tokens_BxT: int ids; what stands in the padding alters nothing.
      lengths_B: int, how many tokens of each are no padding, 0 to T.
      types_BxT: int, which of several texts in a row a token is of (BERT's segments); None where
        there is one.
    """

    tokens_BxT: jax.Array
    lengths_B: jax.Array
    types_BxT: jax.Array | None = None

    @property
    def real_BxT(self) -> jax.Array:
        """Bool, False at the padding."""
        return jnp.arange(self.tokens_BxT.shape[1]) < self.lengths_B[:, None]
