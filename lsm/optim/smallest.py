"""The k smallest numbers of many arrays, without sorting them."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

MOST = 2**31 - 1
"""Most numbers that are compared with each other: they are counted in 32 bits."""


def order(x: jax.Array) -> jax.Array:
    """Returns uint32 that are ordered as the floats of `x` are, and equal where those are."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x.astype(jnp.float32)), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def smallest(
    keys: Sequence[jax.Array], count: jax.typing.ArrayLike, stacks: int = 0
) -> list[jax.Array]:
    """Returns which of `keys` are the `count` smallest of all of them together: bool, as they are.

    Exactly so many, and the same on every mesh: a threshold is found by counting what is below it,
    a bit at a time, so that nothing is sorted or gathered. Of equal keys those go first whose place
    comes first in an order that spreads over the arrays.

    Args:
      keys: uint32 arrays, of at most `MOST` numbers together.
      count: how many, from 0 to all of them.
      stacks: leading axes, which all arrays have alike; each entry along them is chosen alone.
    """

    def over(x: jax.Array, key: jax.Array) -> jax.Array:
        return x.reshape(*x.shape, *[1] * (key.ndim - stacks))

    def counted(chosen: Sequence[jax.Array]) -> jax.Array:
        return sum(x.sum(range(stacks, x.ndim), dtype=jnp.int32) for x in chosen)

    def below(values: Sequence[jax.Array], limit: jax.Array) -> list[jax.Array]:
        return [value < over(limit, value) for value in values]

    limit = _highest(lambda limit: counted(below(keys, limit)) <= count, keys[0].shape[:stacks])
    lower = below(keys, limit)
    left = count - counted(lower)
    ties = [key == over(limit, key) for key in keys]
    places = _places(keys, stacks)

    def first(edge: jax.Array) -> list[jax.Array]:
        return [tie & near for tie, near in zip(ties, below(places, edge), strict=True)]

    edge = _highest(lambda edge: counted(first(edge)) <= left, limit.shape)
    return [a | b for a, b in zip(lower, first(edge), strict=True)]


def _highest(holds: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """Returns the highest uint32 for which `holds`, which is true up to it and false beyond."""

    def raised(bit: jax.Array, limit: jax.Array) -> jax.Array:
        higher = limit | (jnp.uint32(1 << 31) >> bit.astype(jnp.uint32))
        return jnp.where(holds(higher), higher, limit)

    return jax.lax.fori_loop(0, 32, raised, jnp.zeros(shape, jnp.uint32))


def _places(keys: Sequence[jax.Array], stacks: int) -> list[jax.Array]:
    """Returns a number of its own for each place, uint32, that no neighbour's is near to."""
    found, before = [], 0
    for key in keys:
        shape = key.shape[stacks:]
        place = jnp.full((), before, jnp.uint32)
        for axis, size in enumerate(shape):
            stride = math.prod(shape[axis + 1 :])
            along = jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(stride)
            place = place + along.reshape(-1, *[1] * (len(shape) - axis - 1))
        # 2^32 over the golden ratio is odd, so no two products are the same (Knuth 1973, 6.4).
        found.append(jnp.broadcast_to(place * jnp.uint32(2654435769), key.shape))
        before += math.prod(shape)
    return found
