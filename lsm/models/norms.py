"""Norms that Flax has not."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.models.layers import Dtype


class OffsetRMSNorm(nn.Module):
    """RMS norm (arXiv:1910.07467) whose factor is 1 + scale: 0 is no change (Gemma).

    So a decay of the scale draws the factor to 1, and small scales lose no bits to the 1.

    Attributes:
      epsilon: added to the mean square.
      dtype: dtype of the result; all else is float32.
    """

    epsilon: float = 1e-6
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x (..., D), of mean square 1 along D, times 1 + scale."""
        scale_D = self.param("scale", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        norm = nn.RMSNorm(epsilon=self.epsilon, use_scale=False, dtype=jnp.float32)
        return (norm(x.astype(jnp.float32)) * (1 + scale_D)).astype(self.dtype)
