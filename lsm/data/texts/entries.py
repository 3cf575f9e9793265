"""Arrays made of texts, kept in the cache: whole or not at all."""

import io
import logging
import pathlib
import tempfile
import zipfile
from collections.abc import Mapping

import numpy as np

from lsm.data import cache

_log = logging.getLogger("lsm.data")


def kept(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """Returns the arrays of an entry of the cache; None where it is not there or is damaged."""
    try:
        with np.load(path, allow_pickle=False) as entry:  # compares the checksum of each
            return dict(entry)
    except FileNotFoundError:
        return None
    # The last two of an entry whose header says that it is encrypted, or packed in another way.
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        _log.warning("cache: %s is damaged; it is made again.", path)
        return None


def keep_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as an entry of the cache; see `keep`."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    keep(path, out.getvalue())


def keep(path: pathlib.Path, content: bytes) -> None:
    """Writes an entry of the cache, whole or not at all; a cache that cannot be written is told."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: other processes may be writing the same entry.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as file:
            part = pathlib.Path(file.name)
            try:
                file.write(content)
                file.flush()
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)  # of what is not whole; else it has moved
    except OSError as error:
        cache.tell_once(error)
