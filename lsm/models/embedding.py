"""A table of vectors, one a token: what a text goes in by, and where tied, comes out by."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lsm.cpu import by_rows
from lsm.mesh import constrain, ways


class Embedding(nn.Embed):
    """Flax's embedding, whose table can be split over "tensor" by tokens, and gives logits."""

    def table(self) -> jax.Array:
        """Returns the vectors (V, D) in the computation's dtype, whole along D."""
        split = "tensor" if self.num_embeddings % ways("tensor") == 0 else None
        return constrain(self.embedding.astype(self.dtype), split, None)

    def logits(self, x_BxTxD: jax.Array) -> jax.Array:
        """Returns the products (B, T, V) with each token's vector, in the computation's dtype."""
        table_VxD = self.table()

        def product(x: jax.Array) -> jax.Array:
            if x.size == x.shape[-1]:  # one token alone: XLA's CPU back end is four times as fast
                return (table_VxD @ x.ravel()).reshape(*x.shape[:-1], -1)
            return jnp.einsum("...d,vd->...v", x, table_VxD)

        return by_rows(product, x_BxTxD)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Returns float32 (length, width): sines in even and cosines in odd places.

    Their wavelengths rise from 2 pi to 10000 x 2 pi (arXiv:1706.03762, section 3.5).
    """
    angle = np.arange(length)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    waves = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    return waves.reshape(length, -1)[:, :width].astype(np.float32)
