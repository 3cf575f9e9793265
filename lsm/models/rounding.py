"""Numbers rounded to eight bits on their way into a layer, and products of them by qwix."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lsm.errors import ConfigError
from lsm.models.quantised import Bits, dequantise, dequantise_table, quantise, quantise_table


@jax.custom_jvp
def straight_through(x: jax.Array, rounded: jax.Array) -> jax.Array:
    """Returns `rounded`, with the gradient as if it were x (arXiv:1308.3432)."""
    del x
    return rounded


@straight_through.defjvp
def _(primals, tangents):
    return primals[1], tangents[0]


def to_int8(
    x: jax.Array, axes: Sequence[int], largest: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the nearest whole numbers, int8 of x's shape, and float32 scales (..., 1).

    Args:
      x: floats.
      axes: of those that share a scale, their largest over 127.
      largest: float32 (1,), for all x; what is beyond is cut off, but NaN stays: where there is
        one, the scale is NaN. None takes x's own.
    """
    x = x.astype(jnp.float32)
    if largest is None:
        largest = jnp.abs(x).max(axes, keepdims=True)
    else:
        unknown = jnp.isnan(x).any(axes, keepdims=True)
        largest = jnp.where(unknown, jnp.nan, largest.reshape([1] * x.ndim))
    scale = jnp.where(largest == 0, 1, largest) / 127
    return jnp.round(x / scale).clip(-127, 127).astype(jnp.int8), scale


def fake(x: jax.Array, axes: Sequence[int], largest: jax.Array | None = None) -> jax.Array:
    """Returns the floats that `to_int8` makes of x, with the gradient as if they were x."""
    whole, scale = to_int8(x, axes, largest)
    return straight_through(x, (whole.astype(jnp.float32) * scale).astype(x.dtype))


def rounded_kernel(array: jax.Array, bits: Bits, axes: int) -> jax.Array:
    """Returns the floats that a kernel is held as, with the gradient as if they were it.

    Args:
      array: float (*D, F), or a table (V, D).
      bits: see `lsm.models.quantised.quantise`.
      axes: dimensions D; 0 is a table.
    """
    held = (
        dequantise(*quantise(array, bits, axes))
        if axes
        else dequantise_table(*quantise_table(array))
    )
    return straight_through(array, held)


def with_gradient_of(floats: Callable, integers: Callable) -> Callable:
    """Returns `integers`, whose gradient is that of `floats`, which computes the same."""
    wrapped = jax.custom_vjp(integers)
    wrapped.defvjp(
        lambda *args: (integers(*args), args), lambda args, g: jax.vjp(floats, *args)[1](g)
    )
    return wrapped


def qwix() -> Any:
    """Returns the library; raises ConfigError where it is not installed."""
    try:
        import qwix
    except ImportError:
        raise ConfigError(
            "activations: the library qwix is not installed; pip install 'lsm[compress]'."
        ) from None
    return qwix


def integer_dot(
    x_int: jax.Array, x_scale: jax.Array, whole_DxF: jax.Array, scale_GxF: jax.Array
) -> jax.Array:
    """Returns float32 products (..., F) of int8 (..., D) and a kernel, added up in int32.

    Groups of fewer than 128 rows are made floats first, by qwix.
    """
    library = qwix()
    x, kernel = library.QArray(x_int, x_scale), library.QArray(whole_DxF, scale_GxF)
    return library.dot_general(x, kernel, (((x_int.ndim - 1,), (0,)), ((), ())))


def integer_conv(
    x_int: jax.Array,
    x_scale: jax.Array,
    whole: jax.Array,
    scale_1xF: jax.Array,
    *args: Any,
    **options: Any,
) -> jax.Array:
    """Returns the float32 convolution of int8 (B, ..., C) by a kernel (..., C, F), in int32.

    Args:
      x_int: int8.
      x_scale: (B, 1, ..., 1).
      whole: int8.
      scale_1xF: one an output.
      *args: strides and padding, as of `jax.lax.conv_general_dilated`.
      **options: likewise.
    """
    library = qwix()
    kernel = library.QArray(whole, scale_1xF.reshape(*[1] * (whole.ndim - 1), -1))
    return library.conv_general_dilated(library.QArray(x_int, x_scale), kernel, *args, **options)
