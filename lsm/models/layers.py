"""Blocks that several models share."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from lsm.axes import ways

Dtype = Literal["float32", "bfloat16"]
"""Dtype of the computation; parameters are float32 whatever this says."""

Activation = Callable[[jax.Array], jax.Array]
"""An elementwise function such as `jax.nn.gelu`."""

Initializer = Callable[..., jax.Array]
"""(key, shape, dtype) -> array; those of `lsm.models.initializers` print and compare."""


def dot_rows(x: jax.Array, kernel_DxF: jax.Array, *args, **options) -> jax.Array:
    """`jax.lax.dot_general` for `nn.Dense`, on (..., D) with its leading dimensions made one.

    The gradient of a dense layer on (B, T, D) contracts two dimensions, which XLA's CPU back end
    runs in a slow loop. A sequence that is split over devices stays as it is: split dimensions
    cannot be merged.
    """
    if x.ndim == 2 or ways("sequence", "tensor") > 1:
        return jax.lax.dot_general(x, kernel_DxF, *args, **options)
    (_, batch), *rest = args
    rows = x.reshape(-1, x.shape[-1])
    y = jax.lax.dot_general(rows, kernel_DxF, (((1,), (0,)), batch), *rest, **options)
    return y.reshape(*x.shape[:-1], y.shape[-1])


@jax.custom_vjp
def max_pool_2x2(x_BxHxWxC: jax.Array) -> jax.Array:
    """Max over disjoint 2x2 windows; a last odd row or column is dropped (VALID).

    The same function and the same gradient as `reduce_window`'s: where values tie, the first in
    the window has all of it. XLA's CPU back end takes ten times as long over that one.
    """
    return jnp.max(_windows(x_BxHxWxC), axis=(2, 4))


def _windows(x_BxHxWxC: jax.Array) -> jax.Array:
    b, h, w, c = x_BxHxWxC.shape
    return x_BxHxWxC[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)


def _max_pool_forward(x_BxHxWxC: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y_BxHxWxC = max_pool_2x2(x_BxHxWxC)
    return y_BxHxWxC, (x_BxHxWxC, y_BxHxWxC)


def _max_pool_backward(saved: tuple[jax.Array, jax.Array], g_BxHxWxC: jax.Array):
    x_BxHxWxC, y_BxHxWxC = saved
    windows = _windows(x_BxHxWxC)
    free = jnp.ones(y_BxHxWxC.shape, bool)  # no maximum seen yet in this window
    rows = []
    for i in (0, 1):
        columns = []
        for j in (0, 1):
            first = free & (windows[:, :, i, :, j] == y_BxHxWxC)
            columns.append(jnp.where(first, g_BxHxWxC, 0))
            free &= ~first
        rows.append(jnp.stack(columns, axis=3))
    b, h, w, c = x_BxHxWxC.shape
    even = jnp.stack(rows, axis=2).reshape(b, h // 2 * 2, w // 2 * 2, c)
    return (jnp.pad(even, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))),)


max_pool_2x2.defvjp(_max_pool_forward, _max_pool_backward)
