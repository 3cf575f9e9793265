"""Safetensors files, read lazily: each device its own part, and no second copy of the whole."""

import math
import mmap
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import ml_dtypes
import numpy as np

from lsm.errors import CheckpointError, listed, nearest
from lsm.files import expanded, parsed_json

Index = tuple[slice, ...]
"""One slice a dimension, as `jax.make_array_from_callback` passes it; () is the whole."""

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"

_DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}")
       for kind in "IU" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    "C64": np.dtype("c8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}  # fmt: skip


class Tensors:
    """Named tensors in one or several files, mapped into memory.

    Attributes:
      specs: shape and dtype of each, by name.
    """

    def __init__(
        self,
        views: Mapping[str, np.ndarray],
        path: pathlib.Path,
        maps: Sequence[mmap.mmap] = (),
    ):
        """Takes read-only views of mapped files, and the maps; `path` is for error messages."""
        self.specs = {
            name: jax.ShapeDtypeStruct(view.shape, view.dtype) for name, view in views.items()
        }
        self._views, self._path, self._maps = dict(views), path, tuple(maps)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """Returns a copy of a part of a tensor; only that part is read from the disk.

        To read each device's part of a parameter:

            jax.make_array_from_callback(shape, sharding, lambda index: tensors.read(name, index))

        Raises:
          CheckpointError: there is no such tensor.
        """
        # A copy: a view would hold the file, and change with it.
        return np.array(self.view(name)[index])

    def view(self, name: str) -> np.ndarray:
        """Returns a tensor as it lies in the file: read from the disk where it is looked at.

        Raises:
          CheckpointError: there is no such tensor.
        """
        if name not in self._views:
            raise CheckpointError(
                f"{self._path} has no tensor {name!r}; it has {listed(self._views)}."
                + nearest(name, self._views)
            )
        return self._views[name]

    def forget(self) -> None:
        """Gives back the memory of what was read; it is read again where it is looked at."""
        for held in self._maps:
            held.madvise(mmap.MADV_DONTNEED)


def open_tensors(path: os.PathLike | str) -> Tensors:
    """Opens FILE.safetensors, an index of several files, or a folder with either.

    Only headers are read. Shapes and places are checked by the `safetensors` library; the data is
    mapped into memory here, because that library's NumPy interface does not read float8.

    Raises:
      CheckpointError: a file is missing or damaged, or the index names a tensor that is not there.
    """
    path = expanded(path, "safetensors")
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}.")
    maps: list[mmap.mmap] = []
    views = _sharded(path, maps) if path.suffix == ".json" else _views(path, maps)
    return Tensors(views, path, maps)


def _in_folder(folder: pathlib.Path) -> pathlib.Path:
    for name in (FILE, INDEX):
        if (folder / name).is_file():
            return folder / name
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    there = f"; it has {listed(others)}, which can be given itself" if others else ""
    raise CheckpointError(f"{folder} has neither {FILE} nor {INDEX}{there}.")


def _sharded(path: pathlib.Path, maps: list[mmap.mmap]) -> dict[str, np.ndarray]:
    """Returns the tensors that an index file lists; adds to `maps`."""
    try:
        files = dict(parsed_json(path.read_bytes())["weight_map"])
        if other := [x for x in files.values() if not isinstance(x, str)]:
            raise TypeError(f"{other[0]!r} is no name of a file")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}); it should be JSON with a "
            "'weight_map' of tensor names to files."
        ) from error
    shards = {}
    # All shards now: a missing one is told before the first tensor is read.
    for name in sorted(set(files.values())):
        if not (path.parent / name).is_file():
            raise CheckpointError(f"{path} names {name!r}, and there is no such file beside it.")
        shards[name] = _views(path.parent / name, maps)
    for tensor, name in files.items():
        if tensor not in shards[name]:
            raise CheckpointError(f"{path} says that {tensor!r} is in {name!r}, and it is not.")
    return {tensor: shards[name][tensor] for tensor, name in files.items()}


def _views(path: pathlib.Path, maps: list[mmap.mmap]) -> dict[str, np.ndarray]:
    """Returns views of the tensors of one file, mapped into memory; adds to `maps`.

    The header's length stands in the first 8 bytes, and the tensors follow it without gaps, which
    `safe_open` checks (https://github.com/huggingface/safetensors#format).
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            # By offset: tensors lie in this order, which is not that of their names.
            parts = {name: file.get_slice(name) for name in file.offset_keys()}
            specs = {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}
    except (safetensors.SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is no whole safetensors file: {reason}.") from error
    # Bytes; a page is read from the disk when a part of it is.
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    maps.append(data)
    place, views = 8 + int.from_bytes(data[:8], "little"), {}
    for name, (shape, kind) in specs.items():
        if kind not in _DTYPES:
            raise CheckpointError(f"{path}: {name!r} is {kind}; allowed: {listed(_DTYPES, 20)}.")
        views[name] = np.ndarray(shape, _DTYPES[kind], data, place)
        place += math.prod(shape) * _DTYPES[kind].itemsize
    return views
