"""Lines of JSON as examples of any shape: what conversations are read from."""

import gzip
import hashlib
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lsm.data.dataset import Columns, Dataset, Spec
from lsm.data.files import places
from lsm.errors import DataError, listed, nearest
from lsm.files import parsed_json

_ENDINGS = (".jsonl", ".ndjson", ".json")


def files_of(path: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns split name -> its files of JSON lines; see `lsm.data.Files` for what `path` may be.

    Raises:
      DataError: there is nothing, or something else.
    """
    found = places.find(path)
    file = next(file for files in found.values() for file in files)
    if places.kind(file) not in _ENDINGS:
        raise DataError(f"{file}: a file of JSON lines is needed, which ends in .jsonl.")
    return found


class JsonLines(Dataset):
    """The JSON objects (N,) of files, a line each; empty lines are left out."""

    def __init__(self, files: Sequence[pathlib.Path]):
        """Reads all of them."""
        self._places: list[tuple[pathlib.Path, int]] = []
        self._objects: list[dict[str, Any]] = []
        read = hashlib.sha256()
        for file in files:
            for number, line in enumerate(_content(file).split("\n"), 1):
                if line.strip():
                    self._objects.append(_parsed(file, number, line))
                    self._places.append((file, number))
                    read.update(line.encode() + b"\n")
        self.sha256 = read.hexdigest()
        self._files = [(file.name, file.stat().st_size) for file in files]

    def __len__(self) -> int:
        return len(self._objects)

    def field(self, number: int, name: str) -> Any:
        """Returns a field of an object; raises DataError where it is missing."""
        found = self._objects[number]
        if name not in found:
            raise DataError(
                f"{self.where(number)}: there is no field {name!r}; there are {listed(found)}."
                f"{nearest(name, found)}"
            )
        return found[name]

    def get(self, number: int, name: str) -> Any:
        """Returns a field of an object; None where it is missing."""
        return self._objects[number].get(name)

    def take(self, indices: np.ndarray) -> Columns:
        """See `Dataset.take`."""
        column = np.empty(len(indices), object)
        column[:] = [self._objects[i] for i in indices]
        return {"object": column}

    @property
    def spec(self) -> Spec:
        """See `Dataset.spec`."""
        return {"object": jax.ShapeDtypeStruct((), np.dtype(object))}

    @property
    def identity(self) -> dict[str, Any]:
        """See `Dataset.identity`."""
        return super().identity | {"files": [list(file) for file in self._files]}

    def where(self, number: int) -> str:
        """See `Dataset.where`."""
        file, line = self._places[number]
        return f"{file}: line {line:,}"


def _content(file: pathlib.Path) -> str:
    try:
        raw = file.read_bytes()
        return (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error


def _parsed(file: pathlib.Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = parsed_json(line)
    except ValueError as error:
        raise DataError(f"{file}: line {number:,} is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{file}: line {number:,} is no JSON object.")
    return found
