"""What is saved beside arrays: their paths, shapes, dtypes and checksums; which are constant."""

import dataclasses
import hashlib
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lsm.errors import CheckpointError
from lsm.params import flat, path_name
from lsm.tasks.base import CONSTANTS, PROJECTIONS, TEACHER

IN_STATE = f"model_state/{CONSTANTS}/"
"""Beginning of the paths of constants in a training state."""

TAUGHT_BY = (f"{IN_STATE}{TEACHER}/", f"params/{PROJECTIONS}/")
"""Beginnings of the paths of what a student is taught by, which is not of its model."""


def checksums(state: Any) -> Any:
    """Returns a uint32 for every leaf of `state`, which any single wrong bit changes.

    It is the sum, modulo 2^32, of the elements' bits times an odd weight for each place: whole
    numbers, so that any sharding and any order of adding give the same.
    """
    return jax.tree.map(_checksum, state)


def _checksum(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # an Optax transform may keep one
        leaf = jax.random.key_data(leaf)
    # Three that cannot be bitcast.
    if jnp.iscomplexobj(leaf):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    if leaf.dtype in (bool, jnp.int4, jnp.uint4):
        leaf = leaf.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)  # of 8, two
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    # The number of each element in C order, modulo 2^32. By iota, which each device makes for its
    # own part of a sharded leaf.
    place, stride = jnp.uint32(0), 1
    for dim in reversed(range(bits.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim) * jnp.uint32(stride)
        stride = stride * bits.shape[dim] % 2**32  # of larger leaves, uint32() would raise
    # Weights are odd, 2 * place + 1: bit b alters the sum by 2^b times an odd number, which is
    # never 0 modulo 2^32. In two sums: of one alone XLA's CPU back end writes out the products
    # first, as large as the leaf, and takes ten times as long.
    zero, every = jnp.uint32(0), tuple(range(bits.ndim))
    placed, plain = jax.lax.reduce((bits * place, bits), (zero, zero), _added, every)
    return 2 * placed + plain


def _added(some: tuple[jax.Array, jax.Array], others: tuple[jax.Array, jax.Array]) -> Any:
    return some[0] + others[0], some[1] + others[1]


def checksum_of_json(meta: Mapping[str, Any]) -> int:
    """Returns the CRC-32 of a JSON object, whatever the order of its keys."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def spec_of(state: Any) -> dict[str, list]:
    """Returns {path: [shape, dtype]} of every leaf."""
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in flat(state).items()}


def empties(state: Any) -> list[str]:
    """Returns the paths of dicts with nothing in them, which the paths of leaves do not tell of."""
    nodes = jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_empty)
    return [path_name(path) for path, node in nodes if _is_empty(node)]


def _is_empty(node: Any) -> bool:
    return isinstance(node, dict) and not node


def check_spec(saved: dict[str, list], wanted: dict[str, list], where: pathlib.Path) -> None:
    """Raises CheckpointError, with the first leaf that differs, where the two are not equal."""
    if saved == wanted:
        return
    missing = [path for path in wanted if path not in saved]
    extra = [path for path in saved if path not in wanted]
    changed = [path for path in wanted if path in saved and saved[path] != wanted[path]]
    parts = []
    if changed:
        (old_shape, old_dtype), (new_shape, new_dtype) = saved[changed[0]], wanted[changed[0]]
        parts.append(
            f"{changed[0]!r} is {tuple(old_shape)} {old_dtype} there and "
            f"{tuple(new_shape)} {new_dtype} here"
        )
    parts += [f"{path!r} is not in it" for path in missing[:1]]
    parts += [f"it has {path!r}, which this model has not" for path in extra[:1]]
    count = len(missing) + len(extra) + len(changed)
    raise CheckpointError(
        f"checkpoint {where} is of another model: {'; '.join(parts)} ({count} leaves differ); "
        "use its own config, or another --workdir."
    )


def apart(state: Any) -> tuple[Any, Any]:
    """Returns a training state without its constants, and a tree of these alone, or None.

    A teacher, which is of another run, is in neither.
    """
    model_state = dict(getattr(state, "model_state", {}))
    if CONSTANTS not in model_state:
        return state, None
    kept = {name: tree for name, tree in model_state.pop(CONSTANTS).items() if name != TEACHER}
    # As deep as in the state, so that paths are the same in both.
    constants = {"model_state": {CONSTANTS: kept}} if kept else None
    return dataclasses.replace(state, model_state=model_state), constants


def together(state: Any, constants: Any, teacher: Any = None) -> Any:
    """Undoes `apart`."""
    whole = dict(constants["model_state"][CONSTANTS]) if constants else {}
    whole |= {} if teacher is None else {TEACHER: teacher}
    return dataclasses.replace(state, model_state={**state.model_state, CONSTANTS: whole})


def digest(meta: Mapping[str, Any]) -> str:
    """Names the constants of a state by their paths, shapes, dtypes and checksums."""
    parts = [
        [path, *spec, meta["checksums"][path]]
        for path, spec in sorted(meta["spec"].items())
        if path.startswith(IN_STATE) and not path.startswith(TAUGHT_BY)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
