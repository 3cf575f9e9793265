"""Lines of JSON: what the server says of itself on stderr, and who asked for what.

JSON in ASCII escapes every line end and control character, so that a caller cannot write a line.
"""

import datetime
import json
import logging
import pathlib
import sys
from typing import Any

from lsm.errors import LsmError, shortened
from lsm.files import AppendOnly

_MOST = 200  # characters of one text that may come from a caller

log = logging.getLogger("launch.serve")
"""Of the server itself."""


def line(**fields: Any) -> str:
    """Returns one line of JSON with the time (UTC) and `fields`; long texts lose their middle."""
    cut = {k: shortened(v, _MOST) if isinstance(v, str) else v for k, v in fields.items()}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now} | cut)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        level = record.levelname.lower()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        told = {"time": now, "level": level, "logger": record.name}
        return json.dumps(told | {"message": shortened(message, 8000)})


def to_stderr() -> None:
    """Sends what the server, uvicorn and OpenTelemetry log to stderr, a line of JSON each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for logger in (log, *map(logging.getLogger, ("uvicorn", "opentelemetry"))):
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


class Audit:
    """Who asked for what, and what came of it: a line of JSON for each request, without content."""

    def __init__(self, path: pathlib.Path | None):
        """Appends to `path`; None writes to stdout. Raises LsmError where it cannot be opened."""
        self._file = AppendOnly(path) if path else None

    def write(self, **fields: Any) -> None:
        """Writes a line. A disk that is full stops no request, and is told of in the log."""
        text = line(**fields)
        if self._file is None:
            print(text, flush=True)
            return
        try:
            self._file.append(text.encode() + b"\n")
        except LsmError as error:
            log.error("the audit log lacks a request: %s", error)
