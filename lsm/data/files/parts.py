"""What files are read as: parts of rows, with columns by name as NumPy arrays."""

import abc
import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from lsm.errors import DataError, LsmError


class Part(abc.ABC):
    """Rows of one file that lie together: all of them, a row group, a record batch.

    Attributes:
      file: where they are.
      first: number in the file of the first of them.
      names: the columns.
      classes: column -> names of the classes that its numbers stand for, where the file says.
      held: whether they are in memory, so that the file is not read again.
    """

    file: pathlib.Path
    first: int = 0
    names: Sequence[str] = ()
    classes: dict[str, tuple[str, ...]]
    held = False

    def __init__(self, file: pathlib.Path):
        self.file, self.classes, self._stamp = file, {}, stamp(file)

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abc.abstractmethod
    def read(self, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns columns at `rows` (N,), in that order: (N, ...) numbers, as wide as stored.

        Texts, bytes, and lists that differ in length come as dtype object (N,).

        Raises:
          DataError: a value is missing, or what is stored cannot be read; names file and row.
        """

    def row(self, number: int) -> str:
        """Returns how an error names a row, which it counts from 1 (and a header not at all)."""
        return f"{self.file} row {self.first + int(number) + 1:,}"

    def check_unchanged(self) -> None:
        """Raises DataError where the file is no longer what was opened."""
        if not self.held and stamp(self.file) != self._stamp:
            raise DataError(f"{self.file} has changed since it was opened; start again.")


def stamp(file: pathlib.Path) -> tuple[int, int]:
    """Returns the size and the time of a file; DataError where it is not there."""
    try:
        found = os.stat(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def readable(file: pathlib.Path) -> Iterator[None]:
    """Tells of a file that cannot be read in one line that names it."""
    try:
        yield
    except (LsmError, MemoryError):
        raise
    except Exception as error:  # Arrow, HDF5, zip and protobuf have many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file} cannot be read: {reason.rstrip('.')}.") from error


def needs(library: str, extra: str, file: pathlib.Path) -> None:
    """Raises DataError, which names the extra, where a library is not installed."""
    if importlib.util.find_spec(library) is None:
        raise DataError(f"{file}: {library} is not installed; pip install 'lsm[{extra}]'.")


def objects(values: Sequence) -> np.ndarray:
    """Returns values (N,) of dtype object: NumPy would make lists of one length a matrix."""
    column = np.empty(len(values), object)
    column[:] = list(values)
    return column
