"""Arrays in NumPy's .npz and in HDF5: what is asked for is read, and no more."""

import functools
import pathlib
import struct
import zipfile
from collections.abc import Mapping, Sequence, Set
from typing import IO, Any

import numpy as np

from lsm.data.files.parts import Part, needs, objects, readable
from lsm.errors import DataError

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a member of a zip file: lengths of its name and extra


class _Arrays(Part):
    """Arrays, or what is indexed like one, whose first dimension counts the rows."""

    def __init__(self, file: pathlib.Path, arrays: Mapping[str, Any], wanted: Set[str]):
        """Takes the arrays, and the names of those whose rows count; of none given, all do."""
        super().__init__(file)
        self._arrays, self.names = arrays, list(arrays)
        lengths = {name: len(array) if array.shape else 0 for name, array in arrays.items()}
        counted = [n for name, n in lengths.items() if name in wanted] or lengths.values()
        self._length = max(counted, default=0)
        self._other = {name: n for name, n in lengths.items() if n != self._length}

    def __len__(self) -> int:
        return self._length

    def read(self, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
        """See `Part.read`."""
        for name in names:
            if name in self._other:
                raise DataError(
                    f"{self.file}: {name!r} has {self._other[name]:,} rows and others "
                    f"{self._length:,}; leave it out of columns."
                )
        with readable(self.file):
            taken = {name: self._take(self._arrays[name], rows) for name in names}
        return {name: _plain(x, f"{self.file} column {name!r}") for name, x in taken.items()}

    def _take(self, array: Any, rows: np.ndarray) -> np.ndarray:
        return array[rows]


class _Hdf5(_Arrays):
    def _take(self, array: Any, rows: np.ndarray) -> np.ndarray:
        # HDF5 wants each once and in order, and reads a slice many times faster than a list.
        once, back = np.unique(rows, return_inverse=True)
        if not len(once):
            return array[:0]
        dense = once[-1] - once[0] < 2 * len(once)
        found = array[once[0] : once[-1] + 1][once - once[0]] if dense else array[once]
        return found[back]


def open_npz(file: pathlib.Path, wanted: Set[str]) -> list[Part]:
    """Returns the one part of a .npz file.

    Args:
      file: where it is.
      wanted: names of the arrays that are delivered, whose rows count; none given are all.

    Raises:
      DataError: it cannot be read.
    """
    with readable(file), zipfile.ZipFile(file) as members:
        infos = [info for info in members.infolist() if info.filename.endswith(".npy")]
        found = {i.filename.removesuffix(".npy"): _member(file, members, i) for i in infos}
        return [_Arrays(file, found, wanted)]


def open_hdf5(file: pathlib.Path, wanted: Set[str]) -> list[Part]:
    """Returns the one part of an HDF5 file, its data sets by path; see `open_npz`."""
    needs("h5py", "hdf5", file)
    import h5py

    found: dict[str, Any] = {}

    def keep(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            text = h5py.check_string_dtype(node.dtype)
            found[name] = _Texts(node) if text and text.encoding == "utf-8" else node

    with readable(file):
        h5py.File(file, "r").visititems(keep)
        return [_Hdf5(file, found, wanted)]


class _Texts:
    """A data set of texts, which h5py reads as bytes unless it is asked."""

    def __init__(self, node: Any):
        self._node, self.shape = node, node.shape

    def __len__(self) -> int:
        return len(self._node)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._node.asstr()[rows]


def _member(file: pathlib.Path, members: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """An array of a .npz file: mapped into memory, or where it is compressed unpacked when read."""
    with members.open(info) as content:
        shape, fortran, dtype = _header(content)
        size = content.tell()
    if dtype.hasobject:
        raise DataError(f"{file}: {info.filename} holds Python objects; save numbers or texts.")
    if info.compress_type != zipfile.ZIP_STORED:
        return _Packed(file, info.filename.removesuffix(".npy"), shape)
    if 0 in shape:
        return np.zeros(shape, dtype)
    with file.open("rb") as content:
        content.seek(info.header_offset)
        # The extra field here may be longer than the one that the directory tells of.
        start = sum(_LOCAL_HEADER.unpack(content.read(_LOCAL_HEADER.size))) + content.tell()
    order = "F" if fortran else "C"
    return np.asarray(np.memmap(file, dtype, "r", start + size, shape, order))


def _header(content: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads shape, whether the order is Fortran's, and dtype of a .npy file."""
    newer = np.lib.format.read_magic(content)[0] > 1
    read = np.lib.format.read_array_header_2_0 if newer else np.lib.format.read_array_header_1_0
    return read(content)


class _Packed:
    """A compressed array, unpacked whole when the first of its rows are asked for."""

    def __init__(self, file: pathlib.Path, name: str, shape: tuple[int, ...]):
        self._file, self._name, self.shape = file, name, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._whole[rows]

    @functools.cached_property
    def _whole(self) -> np.ndarray:
        with np.load(self._file, allow_pickle=False) as arrays:
            return arrays[self._name]


def _plain(values: np.ndarray, where: str) -> np.ndarray:
    """Numbers in the machine's byte order; texts and dates as objects."""
    if values.dtype.kind == "V":
        raise DataError(
            f"{where} holds {values.dtype}, which is no array; leave it out of columns."
        )
    if values.dtype.kind in "USMm":
        dates = values.dtype.kind in "Mm"
        return objects((values.astype(str) if dates else values).tolist())
    return values.astype(values.dtype.newbyteorder("="), copy=False)
