"""Documents whose tables are made of records."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lsm.errors import DataError, listed
from lsm.files import atomic_write


def write_or_check(verb: str, names: Sequence[str], filled: Callable[[Path], str]) -> None:
    """Gives each document the text that `filled` returns of it, or with "check" only compares.

    Raises:
      DataError: one cannot be read or written, or is not what "write" would make of it.
    """
    try:
        differing = [path for path in map(Path, names) if path.read_text() != filled(path)]
        if verb == "check" and differing:
            raise DataError(f"stale tables in {listed(map(str, differing))}; run `write` on them.")
        for path in differing:
            atomic_write(path, filled(path).encode())
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}.") from error
