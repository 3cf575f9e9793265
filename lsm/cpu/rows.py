"""Dense layers on arrays of three and more dimensions, and means over rows."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

SPLIT = ("sequence", "tensor")
"""Axes of a mesh that a sequence (B, T, D) may be split over along T."""


def as_rows(x: jax.Array, axes: Sequence[str] = SPLIT) -> jax.Array:
    """Returns (..., D) as (N, D); where one of `axes` has several devices, as it is.

    Args:
      x: array whose dimensions behind the first may be split over `axes`: those cannot be merged
        with what is before them, unless every device had all of it.
      axes: of a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh().shape  # of the trace; this room knows no other
    split = max(mesh.get(axis, 1) for axis in axes) > 1
    return x if split else x.reshape(-1, x.shape[-1])


def by_rows(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, axes: Sequence[str] = SPLIT
) -> jax.Array:
    """Returns `function`, (N, D) -> (N, F), of (..., D) by `as_rows`.

    What is split stays as it is: `function` must take (..., D) too.
    """
    y = function(as_rows(x, axes))
    return y.reshape(*x.shape[:-1], y.shape[-1])


def dot_rows(x: jax.Array, kernel_DxF: jax.Array, *args, **options) -> jax.Array:
    """`jax.lax.dot_general` for `nn.Dense`, by rows."""
    (_, batch), *rest = args

    def dot(x: jax.Array) -> jax.Array:
        # `nn.Dense` names the dimension to contract in its own x; by rows it is another.
        contracted = ((x.ndim - 1,), (0,))
        return jax.lax.dot_general(x, kernel_DxF, (contracted, batch), *rest, **options)

    return by_rows(dot, x)


def mean_of_rows(x_NxC: jax.Array) -> jax.Array:
    """Returns the means (C,) of float32 (N, C); on a CPU by a product."""

    def by_product(x_NxC: jax.Array) -> jax.Array:
        ones_N = jnp.ones(len(x_NxC), x_NxC.dtype)
        return jnp.dot(ones_N, x_NxC, precision=jax.lax.Precision.HIGHEST) / len(x_NxC)

    return jax.lax.platform_dependent(x_NxC, cpu=by_product, default=lambda x: x.mean(0))
