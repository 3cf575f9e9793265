"""Random streams by fold_in: no key lives in the state, so a resumed run draws the same numbers."""

import zlib
from collections.abc import Iterable

import jax

from lsm.errors import ConfigError


def stream(seed: int, name: str, step: int | jax.Array = 0) -> jax.Array:
    """Returns the typed key of stream `name` at `step`: fold_in(fold_in(seed, name), step)."""
    # Not `hash`, which differs from process to process; fold_in takes 32 bits.
    named = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(named, step)


def streams(
    names: Iterable[str], seed: int, step: int | jax.Array, purpose: str = ""
) -> dict[str, jax.Array]:
    """Returns the keys of several streams at `step`, by name.

    Args:
      names: of the streams.
      seed: of all streams.
      step: which draw of each.
      purpose: set apart from training, as "evaluation" is; its steps are numbers of batches.
    """
    if isinstance(names, str):
        raise ConfigError(f"streams: {names!r} given; a tuple of names is needed: ({names!r},).")
    return {name: stream(seed, f"{name}/{purpose}" if purpose else name, step) for name in names}
