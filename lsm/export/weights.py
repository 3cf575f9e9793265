"""Arrays in safetensors files, read by NumPy alone: every byte is accounted for before one is used.

The format: https://github.com/huggingface/safetensors#format. Whole numbers of four bits, which it
has not, stand two in a byte, the first in the lower half.
"""

import math
import mmap
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lsm.errors import ExportError
from lsm.export.spec import Array
from lsm.files import parsed_json

PACKED = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4}
_HEADER = 100_000_000
"""Bytes of a header at the most, as in the library."""
_KINDS = {
    "BOOL": "bool",
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint"))
       for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}  # fmt: skip


def stored(x: np.ndarray) -> np.ndarray:
    """Returns an array as it stands in a file."""
    if x.dtype.name not in PACKED:
        return np.asarray(x, order="C")
    halves = x.astype(np.int8).view(np.uint8).ravel() & 15
    halves = np.pad(halves, (0, halves.size % 2)).reshape(-1, 2)
    return halves[:, 0] | halves[:, 1] << 4


def _unpacked(stored_N: np.ndarray, wanted: Array) -> np.ndarray:
    halves = np.stack([stored_N & 15, stored_N >> 4], axis=1).ravel()[: math.prod(wanted.shape)]
    if wanted.dtype == "int4":  # the sign is the fourth bit
        halves = (halves.view(np.int8) ^ 8) - 8
    return halves.astype(PACKED[wanted.dtype]).reshape(wanted.shape)


def _as_stored(wanted: Array) -> Array:
    if wanted.dtype not in PACKED:
        return wanted
    return Array((-(-math.prod(wanted.shape) // 2),), "uint8")


def read(path: pathlib.Path, wanted: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file, mapped into memory, which must be those that are wanted.

    Raises:
      ExportError: the file is damaged, or holds other arrays.
    """
    try:
        with path.open("rb") as file:
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _read(held, wanted)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ExportError(f"{path}: is no whole file of the weights: {error}.") from error


def _read(held: mmap.mmap, wanted: Mapping[str, Array]) -> dict[str, np.ndarray]:
    length = int.from_bytes(held[:8], "little")
    if len(held) < 8 or length > min(_HEADER, len(held) - 8):
        raise ValueError(f"a header of {length} bytes in a file of {len(held)}")
    header: dict[str, Any] = parsed_json(held[8 : 8 + length])
    header.pop("__metadata__", None)
    if header.keys() != wanted.keys():
        raise ValueError(f"{len(header)} arrays, of which {len(wanted)} are known")
    place, found = 0, {}
    # In the order of their places: they follow each other without gaps, up to the end.
    for name in sorted(header, key=lambda name: tuple(header[name]["data_offsets"])):
        one, array = header[name], _as_stored(wanted[name])
        begin, end = one["data_offsets"]
        kind, shape = _KINDS[one["dtype"]], tuple(one["shape"])
        if (kind, shape) != (array.dtype, array.shape):
            raise ValueError(f"{name!r} is {shape} {kind}, and known as {wanted[name]}")
        if begin != place or end - begin != array.nbytes:
            raise ValueError(f"{name!r} is at {begin} to {end}")
        found[name] = np.ndarray(shape, jnp.dtype(kind), held, 8 + length + begin)
        place = end
    if 8 + length + place != len(held):
        raise ValueError(f"{len(held) - place - 8 - length} bytes behind its arrays")
    packed = {name for name in found if wanted[name].dtype in PACKED}
    return {n: _unpacked(x, wanted[n]) if n in packed else x for n, x in found.items()}
