"""Dense layers on arrays of three and more dimensions, and means over rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def by_rows(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Returns `function`, (N, D) -> (N, F), of (..., D): its leading dimensions are made one.

    A sequence that is split over devices stays as it is, since split dimensions cannot be merged:
    `function` must take (..., D) too.
    """
    mesh = jax.sharding.get_abstract_mesh().shape  # of the trace; this room knows no other
    if x.ndim == 2 or max(mesh.get(axis, 1) for axis in ("sequence", "tensor")) > 1:
        return function(x)
    y = function(x.reshape(-1, x.shape[-1]))
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
