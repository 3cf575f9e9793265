"""Kernels held as whole numbers of few bits, with scales beside them: the form, and the way back.

Used for the frozen bases of QLoRA (`lsm.models.Lora`) and for models that are quantised
(`lsm.models.Quantised`).
"""

from typing import Literal

import jax
import jax.numpy as jnp

Bits = Literal["int8", "int4"]
"""How a kernel is held: "int8" with a scale for each output, "int4" with one for each output of
every group of rows, two numbers to a byte."""

GROUP = range(16, 65)
"""Rows of a kernel that share a scale, of int4: the most that divide all, 64 as the blocks of
arXiv:2305.14314 or fewer; for fewer than 16 the scales would take more room than is saved."""

_LARGEST = {"int8": 127, "int4": 7}  # symmetric: the lowest of two's complement is not used


def groups(rows: int, columns: int, bits: Bits) -> int | None:
    """Returns the number of groups that a kernel's rows are in; None where int4 does not fit it.

    It needs an even number of columns, and a size of groups that divides the rows, see `GROUP`.
    """
    if bits == "int8":
        return 1
    size = max((n for n in GROUP if rows % n == 0), default=None)
    return None if size is None or columns % 2 else rows // size


def quantise(kernel: jax.Array, bits: Bits, axes: int = 1) -> tuple[jax.Array, jax.Array]:
    """Returns a float kernel (..., *D, F) as whole numbers, and float32 scales (..., G, F).

    The nearest of whole numbers times a scale, so that a weight is off by half of a scale at most;
    the largest of each group is kept. G is the number of groups of rows.

    Args:
      kernel: with any leading dimensions, of stacked layers.
      bits: "int4" gives uint8 (..., *D, F / 2), whose byte f has number f in its lower and number
        f + F / 2 in its upper half. What int4 does not fit (`groups`) is held as int8 (..., *D, F).
      axes: dimensions D: 1, or of a convolution one more than it has of space.
    """
    shape, last = kernel.shape, kernel.shape[-1]
    rows = kernel.astype(jnp.float32).reshape(*shape[: -1 - axes], -1, last)
    if (count := groups(rows.shape[-2], last, bits)) is None:
        bits, count = "int8", 1
    grouped, largest = _grouped(rows, count), _LARGEST[bits]
    scale = jnp.abs(grouped).max(-2, keepdims=True) / largest
    whole = jnp.round(grouped / jnp.where(scale == 0, 1, scale)).clip(-largest, largest)
    whole = whole.astype("int8").reshape(shape)
    return (_packed(whole) if bits == "int4" else whole), scale.squeeze(-2)


def dequantise(whole: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns the float32 kernel (..., *D, F) that `quantise` made these of, but for the error."""
    rows = jnp.concatenate([half.astype(jnp.float32) for half in halves(whole)], -1)
    grouped = _grouped(rows.reshape(*scale.shape[:-2], -1, scale.shape[-1]), scale.shape[-2])
    return (grouped * scale[..., None, :]).reshape(rows.shape)


def quantise_table(table_VxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the rows of an embedding as int8 (V, D), and their float32 scales (V, 1)."""
    whole_DxV, scale_1xV = quantise(table_VxD.T, "int8")
    return whole_DxV.T, scale_1xV.T


def dequantise_table(whole_VxD: jax.Array, scale_Vx1: jax.Array) -> jax.Array:
    """Returns the float32 table (V, D) that `quantise_table` made these of, but for the error."""
    return whole_VxD.astype(jnp.float32) * scale_Vx1


def halves(whole: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the int8 numbers of a kernel: itself, or the first and the last half of columns."""
    if whole.dtype != jnp.uint8:
        return (whole,)
    signed = jax.lax.bitcast_convert_type(whole, jnp.int8)
    return jnp.right_shift(jnp.left_shift(signed, 4), 4), jnp.right_shift(signed, 4)


def float_shape(whole: jax.Array | jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """Returns the shape of the kernel that is held so."""
    *rows, columns = whole.shape
    return *rows, columns * (2 if whole.dtype == jnp.uint8 else 1)


def _packed(whole: jax.Array) -> jax.Array:
    low, high = jnp.split(jax.lax.bitcast_convert_type(whole, jnp.uint8), 2, axis=-1)
    return jnp.bitwise_or(jnp.bitwise_and(low, 15), jnp.left_shift(high, 4))


def _grouped(x: jax.Array, count: int) -> jax.Array:
    """(..., D, F) as (..., G, D / G, F)."""
    *lead, rows, columns = x.shape
    return x.reshape(*lead, count, rows // count, columns)
