"""Random streams by fold_in: no key lives in the state, so a resumed run draws the same numbers."""

import zlib

import jax


def stream(seed: int, name: str, step: int | jax.Array = 0) -> jax.Array:
    """Returns the typed key of stream `name` at `step`: fold_in(fold_in(seed, name), step)."""
    named = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(named, step)
