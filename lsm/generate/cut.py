"""Slots of a cache as caches of their own, and what was written there put back."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lsm.models.cache import Cache


def few(cache: Cache, slot_N: jax.Array, length_N: jax.Array, span: int) -> Cache:
    """Returns the cache of a few slots, in which the first `span` positions are."""

    def of(x_SxAxBxC: jax.Array, axis: int) -> jax.Array:
        size = [1, *x_SxAxBxC.shape[1:]]
        size[axis] = span
        # Slices, which are copied as they lie; a gather takes every number by itself.
        return jnp.concatenate(
            [jax.lax.dynamic_slice(x_SxAxBxC, [slot, 0, 0, 0], size) for slot in slot_N]
        )

    return _cut(of(cache.k_BxGxKxS, 3), of(cache.v_BxGxSxK, 2), length_N)


def with_few(cache: Cache, own: Cache, slot_N: jax.Array, length_N: jax.Array) -> Cache:
    """Returns the cache with the one position more that slots have in caches of their own."""
    # Where nobody writes, more may be filled than was cut out: any number will do, but no NaN.
    row_N, place_N = jnp.arange(len(slot_N)), jnp.minimum(length_N, own.v_BxGxSxK.shape[2] - 1)
    k_NxGxK = own.k_BxGxKxS[row_N, :, :, place_N]
    v_NxGxK = own.v_BxGxSxK[row_N, :, place_N]
    return Cache(
        k_BxGxKxS=cache.k_BxGxKxS.at[slot_N, :, :, length_N].set(k_NxGxK),
        v_BxGxSxK=cache.v_BxGxSxK.at[slot_N, :, length_N].set(v_NxGxK),
        length=jnp.zeros((), jnp.int32),
    )


def _cut(k_BxGxKxS: jax.Array, v_BxGxSxK: jax.Array, length_B: jax.Array) -> Cache:
    # A copy, once and for all: else XLA reads again from what is written meanwhile, and copies.
    k_BxGxKxS, v_BxGxSxK = jax.lax.optimization_barrier((k_BxGxKxS, v_BxGxSxK))
    return Cache(k_BxGxKxS=k_BxGxKxS, v_BxGxSxK=v_BxGxSxK, length=length_B)


def _each(function: Callable, x_SxAxBxC: jax.Array, *args: jax.Array) -> jax.Array:
    """Calls `function` with the slots of each part, and what it is given: (W, ...) each."""
    parts = len(args[0])
    x_WxSxAxBxC = x_SxAxBxC.reshape(parts, -1, *x_SxAxBxC.shape[1:])
    if parts == 1:  # slices, where `vmap` would gather and scatter
        return function(x_WxSxAxBxC[0], *(x[0] for x in args))[None]
    return jax.vmap(function)(x_WxSxAxBxC, *args)


def of_slots(cache: Cache, slot_W: jax.Array, length_W: jax.Array, span: int) -> Cache:
    """Returns the cache of one slot of each part."""

    def of(x_SxAxBxC: jax.Array, axis: int) -> jax.Array:
        def one(x_SxAxBxC, slot):
            size = [1, *x_SxAxBxC.shape[1:]]
            size[axis] = span
            return jax.lax.dynamic_slice(x_SxAxBxC, [slot, 0, 0, 0], size)[0]

        return _each(one, x_SxAxBxC, slot_W)

    return _cut(of(cache.k_BxGxKxS, 3), of(cache.v_BxGxSxK, 2), length_W)


def written_in(
    cache: Cache,
    new: Cache,
    slot_W: jax.Array,
    begin_W: jax.Array,
    t: int,
    writes_W: jax.Array | None = None,
) -> Cache:
    """Returns the cache with T positions of `new` (W rows) in slots, where a part writes."""

    def written(x_SxAxBxC: jax.Array, new_WxAxBxC: jax.Array, axis: int) -> jax.Array:
        def one(x_SxAxBxC, new_AxBxC, slot, begin, writes):
            start = [slot, 0, 0, 0]
            start[axis] = begin
            size = [1, *new_AxBxC.shape]
            size[axis] = t
            new_1xAxBxC = jax.lax.dynamic_slice(new_AxBxC[None], [0, *start[1:]], size)
            if len(slot_W) > 1:
                old_1xAxBxC = jax.lax.dynamic_slice(x_SxAxBxC, start, size)
                new_1xAxBxC = jnp.where(writes, new_1xAxBxC, old_1xAxBxC)
            return jax.lax.dynamic_update_slice(x_SxAxBxC, new_1xAxBxC, start)

        all_W = jnp.ones(len(slot_W), bool) if writes_W is None else writes_W
        y = _each(one, x_SxAxBxC, new_WxAxBxC, slot_W, begin_W, all_W)
        return y.reshape(x_SxAxBxC.shape)

    return Cache(
        k_BxGxKxS=written(cache.k_BxGxKxS, new.k_BxGxKxS, 3),
        v_BxGxSxK=written(cache.v_BxGxSxK, new.v_BxGxSxK, 2),
        length=jnp.zeros((), jnp.int32),
    )
