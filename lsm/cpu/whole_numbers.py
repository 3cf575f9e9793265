"""Products with kernels of whole numbers, which are read from memory as such."""

import jax
import jax.numpy as jnp

_TERMS = 36
_LANES = 16  # of float32 in a register of AVX-512
_ROWS = 1024


def one_device() -> bool:
    """Returns whether the trace is for one device: what is below is not split over several."""
    return jax.sharding.get_abstract_mesh().size <= 1


def row_by_kernel(x_D: jax.Array, whole_DxF: jax.Array, scale_GxF: jax.Array) -> jax.Array:
    """Returns x (D,) times the float32 kernel, (F,): one pass over its int8 numbers.

    Eight rows at a time are multiplied and added, which XLA makes one loop along F of, in vectors;
    a sum over a dimension would be a loop of its own, of single numbers. What is written in between
    is an eighth of the floats.

    Args:
      x_D: float32.
      whole_DxF: int8.
      scale_GxF: factors of whole_DxF, each of D / G rows.
    """
    count, f = scale_GxF.shape
    size = len(x_D) // count
    terms = max(n for n in (8, 4, 2, 1) if size % n == 0)
    x_GxKxN = x_D.reshape(count, terms, -1)
    whole_GxKxNxF = whole_DxF.reshape(count, terms, -1, f)
    sums_GxNxF = sum(
        x_GxKxN[:, k, :, None] * whole_GxKxNxF[:, k].astype(jnp.float32) for k in range(terms)
    )
    # Else XLA makes one reduction of the two.
    sums_GxNxF = jax.lax.optimization_barrier(sums_GxNxF)
    return (sums_GxNxF * scale_GxF[:, None]).sum((0, 1))


def table_by_rows(whole_VxD: jax.Array, x_NxD: jax.Array) -> jax.Array:
    """Returns the products (N, V) of float32 (N, D) with the rows of an int8 table."""
    if len(x_NxD) == 1 and x_NxD.size % _LANES == 0:
        return _table_by_row(whole_VxD, x_NxD[0])[None]

    # A thousand rows of the table at a time: as floats they lie in a cache.
    def dot(row_D: jax.Array) -> jax.Array:
        return x_NxD @ row_D.astype(jnp.float32)

    return jax.lax.map(dot, whole_VxD, batch_size=min(_ROWS, len(whole_VxD))).T


def _table_by_row(whole_VxD: jax.Array, x_D: jax.Array) -> jax.Array:
    """As `row_by_kernel`, along D; what is left of it is summed by a product with ones."""
    parts = len(x_D) // _LANES
    terms = max(n for n in range(1, _TERMS + 1) if parts % n == 0)
    x_KxN, whole_VxKxN = x_D.reshape(terms, -1), whole_VxD.reshape(len(whole_VxD), terms, -1)
    sums_VxN = sum(x_KxN[k] * whole_VxKxN[:, k].astype(jnp.float32) for k in range(terms))
    return jax.lax.optimization_barrier(sums_VxN) @ jnp.ones(len(x_D) // terms)


def after(x: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the arrays, and what is made of them is made once x is there.

    Kernels of all layers would else be made floats first, in memory that is new at every call: ten
    times as slow. So they take turns in one buffer, which stays in a cache.
    """
    return jax.lax.optimization_barrier((x, *arrays))[1:]
