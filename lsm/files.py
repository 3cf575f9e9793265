"""Files that are never seen half written, and errors of the disk in one readable line."""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lsm.errors import ConfigError, LsmError, TrainingError, nearest, shortened

_held: set[Path] = set()
_holding = threading.Lock()
_DAY = 86_400.0  # seconds


@contextlib.contextmanager
def exclusive(path: Path, taken: LsmError) -> Iterator[None]:
    """Holds the file `path`, made where needed and left behind, until the block or process ends.

    It is a POSIX record lock, which NFS hands to its server: it holds between hosts, where `flock`
    of a folder may be known to one host alone. Such a lock belongs to the process, so that claims
    in one process are told apart here.

    Raises:
      LsmError: `taken`, where it is held, by this process or another.
      TrainingError: the file cannot be written, or its disk has no locks.
    """
    path = path.resolve()
    with _holding:
        # Before the file is opened: to close it again would end the lock.
        if path in _held:
            raise taken
        with readable_disk_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(handle)
                if error.errno in (errno.EAGAIN, errno.EACCES):  # systems differ
                    raise taken from error
                raise
        _held.add(path)
    try:
        yield
    finally:
        with _holding:
            _held.discard(path)
            os.close(handle)


class AppendOnly:
    """A file that takes each piece whole or not at all, at once (no buffer to lose on kill -9).

    Raises:
      TrainingError: the file cannot be made or opened.
    """

    def __init__(self, path: Path):
        self._path = path
        with readable_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)

    def append(self, piece: bytes) -> None:
        """Writes `piece` at the end. Raises TrainingError, the file as before, where it cannot."""
        with readable_disk_errors(self._path):
            start = os.fstat(self._file.fileno()).st_size
            try:
                written = 0
                # Unbuffered, write() may take only a part (as of a disk that fills up).
                while written < len(piece):
                    written += self._file.write(piece[written:])
            except OSError:
                # Back to the last whole piece.
                with contextlib.suppress(OSError):
                    self._file.truncate(start)
                raise

    def close(self) -> None:
        """Closes the file."""
        with readable_disk_errors(self._path):
            self._file.close()


def expanded(path: os.PathLike | str, field: str) -> Path:
    """Returns a path, to something or to nothing yet, with "~" as the home directory.

    A shell leaves the "~" of `--workdir=~/x` as it is.

    Raises:
      ConfigError: it is empty, too long, a loop of links, or of nobody's home; names `field`.
    """
    text = os.fspath(path)
    if not text:
        raise ConfigError(f"{field}: is empty; a path is needed.")
    try:
        found = Path(text).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found.stat()
        return found
    except (OSError, ValueError, RuntimeError) as error:  # a name has no NUL; no such user
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{field}: {shortened(text)!r} is no path: {reason}.") from error


def nothing_at(path: Path) -> str:
    """Returns "PATH: no such file or folder.", and the nearest name beside it, if one is."""
    near = os.listdir(path.parent) if os.access(path.parent, os.R_OK | os.X_OK) else []
    return f"{path}: no such file or folder.{nearest(path.name, near)}"


def atomic_write(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one move: a reader sees the old file or the new, whole.

    Raises:
      TrainingError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    # Beside it: a move is one step only within a file system.
    part = path.with_name(path.name + ".part")
    with readable_disk_errors(path):
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                # Content before name: else a power cut may leave an empty file under it.
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def readable_disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError (disk full, quota, no permission) into one line that names `path`."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot be written: {error.strerror or error}. "
            "Mend this and run the same command again; it goes on from what was saved."
        ) from error


def parsed_json(text: str | bytes) -> Any:
    """Returns what JSON says; raises ValueError for whatever is none, however deep its brackets."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets within brackets, too deep to be read") from error


def plain_json(value: Any) -> Any:
    """Returns `value` as JSON values: NumPy scalars as numbers, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "item"):  # NumPy and JAX scalars
        return plain_json(value.item())
    return float(value) if math.isfinite(value) else None


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Hides what the process writes to stderr for a while.

    The file descriptor, not `sys.stderr`: native threads write past Python.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def remove_old(folder: Path, pattern: str) -> None:
    """Removes what processes that were killed have left unfinished in a folder: a day old, or more.

    Younger ones may be in work elsewhere, on another machine too.
    """
    for left in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process has removed it
            newest = max(path.stat().st_mtime for path in (left, *left.rglob("*")))
            if time.time() - newest > _DAY:
                shutil.rmtree(left, ignore_errors=True)
