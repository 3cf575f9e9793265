"""Max-pooling, and a bias that may come after it."""

import flax.linen as nn
import jax
import jax.numpy as jnp


@jax.custom_vjp
def max_pool_2x2(x_BxHxWxC: jax.Array) -> jax.Array:
    """Max over disjoint 2x2 windows; a last odd row or column is dropped (VALID).

    The same function and the same gradient as `reduce_window`'s: where values tie, the first in
    the window has all of it. XLA's CPU back end takes ten times as long over that one.
    """
    return jnp.max(_windows(x_BxHxWxC), axis=(2, 4))


def _windows(x_BxHxWxC: jax.Array) -> jax.Array:
    b, h, w, c = x_BxHxWxC.shape
    # (B, H/2, 2, W/2, 2, C): row and column within the window are dimensions 2 and 4.
    return x_BxHxWxC[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)


def _max_pool_forward(x_BxHxWxC: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y_BxHxWxC = max_pool_2x2(x_BxHxWxC)
    return y_BxHxWxC, (x_BxHxWxC, y_BxHxWxC)


def _max_pool_backward(saved: tuple[jax.Array, jax.Array], g_BxHxWxC: jax.Array):
    x_BxHxWxC, y_BxHxWxC = saved
    windows = _windows(x_BxHxWxC)
    free = jnp.ones(y_BxHxWxC.shape, bool)  # no maximum seen yet in this window
    rows = []
    # In the order of the window, so that the first of equals is the one that `reduce_window` picks.
    for i in (0, 1):
        columns = []
        for j in (0, 1):
            first = free & (windows[:, :, i, :, j] == y_BxHxWxC)
            columns.append(jnp.where(first, g_BxHxWxC, 0))
            free &= ~first
        rows.append(jnp.stack(columns, axis=3))  # (B, H/2, W/2, 2, C)
    b, h, w, c = x_BxHxWxC.shape
    even = jnp.stack(rows, axis=2).reshape(b, h // 2 * 2, w // 2 * 2, c)
    # The odd row and column that were dropped get 0.
    return (jnp.pad(even, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))),)


max_pool_2x2.defvjp(_max_pool_forward, _max_pool_backward)


class Bias(nn.Module):
    """Adds a learned value to each channel; it starts at 0.

    Attributes:
      dtype: dtype of the computation.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x (..., C) + bias (C,)."""
        bias_C = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return x + bias_C.astype(self.dtype)
