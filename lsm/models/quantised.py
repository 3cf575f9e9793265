"""Kernels held as whole numbers of few bits, with a scale beside them: frozen bases of QLoRA."""

from typing import Literal

import jax
import jax.numpy as jnp

from lsm.errors import ConfigError

Bits = Literal["int8", "int4"]
"""How a kernel is held: "int8" with a scale for each output, "int4" with one for each output of
every group of rows."""

GROUP = 64
"""Rows of a kernel that share a scale, of int4 (arXiv:2305.14314 has blocks of as many weights)."""

_LARGEST = {"int8": 127, "int4": 7}  # symmetric: the lowest of two's complement is not used


def groups(rows: int, bits: Bits) -> int:
    """Returns the number of groups that the rows of a kernel are in; raises ConfigError."""
    size = rows if bits == "int8" else min(GROUP, rows)
    if rows % size:
        raise ConfigError(
            f"int4: a kernel of {rows} rows given; groups of {size} need a multiple of that. Hold "
            'it as "int8".'
        )
    return rows // size


def quantise(kernel: jax.Array, bits: Bits) -> tuple[jax.Array, jax.Array]:
    """Returns a float kernel (..., D, F) as whole numbers (..., D, F), and scales (..., G, F).

    The nearest of whole numbers times a float32 scale, so that a weight is off by half of a scale
    at most; the largest of each group is kept. G is the number of groups of rows.
    """
    grouped = _grouped(kernel.astype(jnp.float32), groups(kernel.shape[-2], bits))
    largest = _LARGEST[bits]
    scale = jnp.abs(grouped).max(-2, keepdims=True) / largest
    whole = jnp.round(grouped / jnp.where(scale == 0, 1, scale)).clip(-largest, largest)
    return whole.reshape(kernel.shape).astype(bits), scale.squeeze(-2)


def dequantise(whole: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns the float32 kernel (..., D, F) that `quantise` made these two of, but for the error.

    Args:
      whole: (..., D, F) int8 or int4.
      scale: (..., G, F).
    """
    grouped = _grouped(whole.astype(jnp.float32), scale.shape[-2])
    return (grouped * scale[..., None, :]).reshape(whole.shape)


def _grouped(x: jax.Array, count: int) -> jax.Array:
    """(..., D, F) as (..., G, D / G, F)."""
    *lead, rows, columns = x.shape
    return x.reshape(*lead, count, rows // count, columns)
