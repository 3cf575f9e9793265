"""Max-pooling, with gradients of its own."""

import functools

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


def max_pool_3x3(x_BxHxWxC: jax.Array) -> jax.Array:
    """Max over 3x3 windows at every other place, the picture's edges among them: (B, H/2, W/2, C).

    PyTorch's `max_pool2d(x, 3, stride=2, padding=1)`, with the same gradient: where values tie, the
    first in the window has all of it. `reduce_window`'s takes several times as long on a CPU.
    """
    return _max_of_3(_max_of_3(x_BxHxWxC, 2), 1)  # columns first: so ties are as said


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_3(x: jax.Array, axis: int) -> jax.Array:
    """Max of x[2i - 1], x[2i] and x[2i + 1]."""
    return functools.reduce(jnp.maximum, _threes(x, axis))


def _threes(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    odd = x.shape[axis] % 2
    x = jnp.pad(x, [(0, odd if d == axis else 0) for d in range(x.ndim)], constant_values=-jnp.inf)
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    return _shifted(odd, axis, 1, -jnp.inf), even, odd


def _shifted(x: jax.Array, axis: int, by: int, fill: float) -> jax.Array:
    """Returns x moved on by 1 or -1 along `axis`."""
    pads = [(by, -by, 0) if d == axis else (0, 0, 0) for d in range(x.ndim)]
    return jax.lax.pad(x, jnp.asarray(fill, x.dtype), pads)


def _max_of_3_forward(x: jax.Array, axis: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _max_of_3(x, axis)
    return y, (x, y)


def _max_of_3_backward(axis: int, saved: tuple[jax.Array, jax.Array], g: jax.Array):
    x, y = saved
    before, even, _ = _threes(x, axis)
    of_before, of_even = before == y, even == y
    d_before = jnp.where(of_before, g, 0)
    d_even = jnp.where(~of_before & of_even, g, 0)
    d_odd = jnp.where(of_before | of_even, 0, g) + _shifted(d_before, axis, -1, 0)
    pairs = jnp.stack([d_even, d_odd], axis + 1)
    d_x = pairs.reshape(*pairs.shape[:axis], -1, *pairs.shape[axis + 2 :])
    return (jax.lax.slice_in_dim(d_x, 0, x.shape[axis], axis=axis),)


_max_of_3.defvjp(_max_of_3_forward, _max_of_3_backward)
