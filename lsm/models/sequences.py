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
        return real_positions(self.lengths_B, self.tokens_BxT.shape[1])


def real_positions(lengths_B: jax.Array, positions: int) -> jax.Array:
    """Returns bool (B, positions), True at the first `lengths_B` of each row."""
    return jnp.arange(positions) < lengths_B[:, None]
