"""Documents whose tables are made of records."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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


def machine(hardware: Mapping[str, Any]) -> str:
    """Returns what `lsm.run.result.hardware` tells, in words."""
    if hardware["platform"] == "cpu":
        return f"{hardware['cpu']}, {hardware['cores']} cores"
    return f"{hardware['device_count']} x {hardware['device_kind']}"


def short_revision(revision: str | None) -> str:
    """Returns a commit's first ten digits, with what is behind a "+"."""
    commit, plus, dirty = (revision or "unknown").partition("+")
    return f"{commit[:10]}{plus}{dirty}"
