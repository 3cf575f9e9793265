"""The journal: what was begun and done, a line of JSON each, only ever added to.

Each line has the SHA-256 of the line before it and of itself, so that an edit, or a line taken out,
shows. What shows nothing is a tail that is cut off: keep the last hash elsewhere, if that matters.
"""

import datetime
import getpass
import hashlib
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any, Literal

from launch.command import LaunchError
from lsm.files import parsed_json, plain_json, readable_disk_errors

State = Literal["begun", "done"]
_FIRST = "0" * 64


class Journal:
    """The journal in a file, made where needed.

    Attributes:
      records: all lines, the oldest first: "cycle", "step", "state", "time" (UTC), "by" (user and
        host), what is said of the step, and "hash".
    """

    def __init__(self, path: pathlib.Path):
        """Reads the file, and drops a last line that a kill has cut short.

        Raises:
          LaunchError: a line was changed or taken out.
        """
        self._path = path
        with readable_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_bytes() if path.exists() else b""
            whole = text[: text.rfind(b"\n") + 1]
            if whole != text:
                os.truncate(path, len(whole))
        self.records = list(_read(path, whole))

    def append(self, cycle: int, step: str, state: State, **said: Any) -> dict[str, Any]:
        """Adds a line, on the disk before this returns, and returns it."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        by = f"{_user()}@{socket.gethostname()}"
        record = {"time": now, "by": by, "cycle": cycle, "step": step, "state": state}
        record = plain_json(record | said)
        record["hash"] = _hash(self.head, record)
        with readable_disk_errors(self._path), self._path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)
        return record

    @property
    def head(self) -> str:
        """The hash of the last line."""
        return self.records[-1]["hash"] if self.records else _FIRST

    def found(self, step: str, state: State = "done", cycle: int | None = None) -> list[dict]:
        """Returns the lines of a step in a state, the oldest first."""
        wanted = {"step": step, "state": state} | ({} if cycle is None else {"cycle": cycle})
        return [r for r in self.records if wanted.items() <= r.items()]


def _read(path: pathlib.Path, text: bytes) -> Iterator[dict[str, Any]]:
    before = _FIRST
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record = parsed_json(line)
            known = {key: value for key, value in record.items() if key != "hash"}
            right = record["hash"] == _hash(before, known)
        except (ValueError, KeyError, AttributeError, TypeError):
            right = False
        if not right:
            raise LaunchError(
                f"{path}: line {number} is not what was written, or lines before it are gone; "
                "put the file back, or begin with a new --workdir."
            )
        before = record["hash"]
        yield record


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # of containers, where a number has no name
        return str(os.getuid())


def _hash(before: str, record: dict[str, Any]) -> str:
    text = before + json.dumps(record, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
