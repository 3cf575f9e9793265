"""Documents whose tables are made of records."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsm import command_line
from lsm.errors import DataError, listed
from lsm.files import atomic_write, plain_json


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


def wrote_or_checked(words: Sequence[str], filled: Callable[[Path], str]) -> bool:
    """Does what `write` or `check` with documents asks; False for `run`, or nothing: the caller's.

    Raises:
      ConfigError: it is another word.
      DataError: see `write_or_check`.
    """
    verb, *documents = words or ["run"]
    command_line.require_one_of(verb, ("run", "write", "check"))
    if verb == "run":
        return False
    write_or_check(verb, documents, filled)
    return True


def origin(record: Mapping[str, Any]) -> str:
    """Returns where a record was made: machine, versions, commit."""
    versions = [f"{name} {version}" for name, version in record["versions"].items()]
    at = f"at {short_revision(record['git_revision'])}"
    return "; ".join([machine(record["hardware"]), ", ".join(versions), at])


def between(document: Path, mark: str, made: str) -> str:
    """Returns the text of `document` with `made` between <!-- mark --> and <!-- /mark -->."""
    place = re.compile(rf"^(<!-- {mark} -->\n).*?^(<!-- /{mark} -->)$", re.DOTALL | re.MULTILINE)
    return place.sub(lambda found: found[1] + made + found[2], document.read_text())


def kept(record: Path) -> Any:
    """Returns a record. Raises DataError where it is not there."""
    if not record.exists():
        raise DataError(f"{record} is not there; `run` makes it.")
    return json.loads(record.read_text())


def keep(record: Path, made: Any) -> None:
    """Writes a record as JSON, to be committed."""
    atomic_write(record, (json.dumps(plain_json(made), indent=1) + "\n").encode())


def machine(hardware: Mapping[str, Any]) -> str:
    """Returns what `lsm.run.result.hardware` tells, in words."""
    if hardware["platform"] == "cpu":
        cores = hardware["cores"]
        return f"{hardware['cpu']}, {cores} core{'s' if cores > 1 else ''}"
    return f"{hardware['device_count']} x {hardware['device_kind']}"


def short_revision(revision: str | None) -> str:
    """Returns a commit's first ten digits, with what is behind a "+"."""
    commit, plus, dirty = (revision or "unknown").partition("+")
    return f"{commit[:10]}{plus}{dirty}"
