"""Decoded columns kept on disk, so that a dataset is decoded once and then mapped into memory.

An entry is a directory of .npy files, one a column, and their checksums, which are compared
whenever it is opened (at some GiB a second). It is written under another name and renamed when it
is whole. The directory can be deleted at any time; it is `$LSM_CACHE`, or `~/.cache/lsm`.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from lsm.data import decode
from lsm.data.dataset import ArrayDataset, Columns, Dataset, Derived, Read, Spec
from lsm.errors import DataError
from lsm.files import expanded, parsed_json, remove_old

MAX_BYTES = 2 * 2**30
"""Above this decoded size a split is read example by example instead: it would crowd the page
cache of a laptop, and at about 20 s for each decoded GiB the wait before step 0 is no longer worth
it. CIFAR-10 is 0.15 GiB; 14,000 RGB pictures of 224 x 224 are 2 GiB."""

_VERSION = 2  # counts changes of how lsm decodes and stores, so that old entries are not used
_CHECKSUMS = "checksums.json"
_log = logging.getLogger("lsm.data")
_told: set[pathlib.Path] = set()


def root() -> pathlib.Path:
    """Returns the directory of the cache: `$LSM_CACHE`, or `~/.cache/lsm`."""
    return expanded(os.environ.get("LSM_CACHE") or "~/.cache/lsm", "LSM_CACHE")


def fits(spec: Spec, rows: int) -> bool:
    """Says whether `rows` examples have a fixed shape and at most MAX_BYTES in all."""
    if any(one.dtype == object for one in spec.values()):
        return False
    return rows * sum(one.dtype.itemsize * int(np.prod(one.shape)) for one in spec.values()) <= (
        MAX_BYTES
    )


def fingerprint(files: list[pathlib.Path], *facts: object) -> str:
    """Returns a name for the decoded content of `files`: their sizes and times, and `facts`.

    Raises:
      DataError: one of them is not there, such as the end of a broken link.
    """
    import PIL

    # Names, not paths: data that is moved keeps its entry. Another Pillow may resize otherwise.
    try:
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error
    text = json.dumps([_VERSION, PIL.__version__, stats, [repr(fact) for fact in facts]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Cached(Derived):
    """A dataset whose examples are all decoded, once, when the first is asked for.

    Its length, shapes, classes and identity are known before.
    """

    def __init__(self, dataset: Dataset, decode: Callable[[], Dataset]):
        """Takes the dataset as it is before, and what makes it the one that is in memory."""
        super().__init__(dataset)
        self._decode = decode
        self._made: Dataset | None = None
        self._lock = threading.Lock()

    def _decoded(self) -> Dataset:
        with self._lock:  # of threads that ask at the same time one decodes
            if self._made is None:
                self._made = self._decode()
            return self._made

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, indices: np.ndarray) -> Columns:
        """See `Dataset.take`."""
        return self._decoded().take(indices)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """See `Dataset.lengths`."""
        return self._dataset.lengths(indices)

    def column(self, name: str) -> np.ndarray:
        """See `Dataset.column`; of a dataset that reads no more than that, before the others."""
        alone = type(self._dataset).column is not Dataset.column
        return self._dataset.column(name) if alone else super().column(name)

    def held(self) -> Iterator[Columns]:
        """See `Dataset.held`."""
        return self._decoded().held()

    def resident(self) -> tuple[Columns, Read] | None:
        """See `Dataset.resident`."""
        return self._decoded().resident()

    def by_example(self) -> Dataset:
        """See `Dataset.by_example`."""
        return self._dataset

    def rows(self, start: int, stop: int) -> Dataset:
        """See `Dataset.rows`."""
        if (start, stop) == (0, len(self)):
            return self
        part = self._dataset.rows(start, stop)
        return Cached(part, lambda: self._decoded().rows(start, stop))


def cached(name: str, key: str, dataset: Dataset) -> Dataset:
    """Returns a dataset of fixed shapes in the form that is decoded once; see `columns`."""

    def decode() -> Dataset:
        return ArrayDataset(columns(name, key, dataset), dataset.classes, dataset.identity)

    return Cached(dataset, decode)


def columns(name: str, key: str, dataset: Dataset) -> Columns:
    """Returns all columns of a dataset, from the cache where it has them.

    Args:
      name: what is decoded, for the name of the entry and the log.
      key: the `fingerprint` of the files and settings.
      dataset: of fixed shapes; read only when the cache has no such entry.
    """
    spec, rows = dataset.spec, len(dataset)
    entry = root() / "decoded" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{key}"
    found = _load(entry, spec, rows)
    if found is not None:
        return found
    if entry.exists():
        _log.warning("cache: %s is damaged; it is made again.", entry)
    _log.info("%s: decoding %s examples, once", name, f"{rows:,}")
    start = time.perf_counter()
    try:
        _write(entry, spec, rows, decode.chunks(name, dataset))
        # Mapped even now: memory maps can be dropped under pressure, arrays cannot.
        decoded = _load(entry, spec, rows)
    except OSError as error:
        decoded = None
        tell_once(error)
    if decoded is None:
        decoded = _in_memory(spec, rows, decode.chunks(name, dataset))
    _log.info("%s: decoded in %.1f s", name, time.perf_counter() - start)
    return decoded


def _load(entry: pathlib.Path, spec: Spec, rows: int) -> Columns | None:
    """Maps an entry; None where it is not there or not what was written, to the last bit."""
    found = {}
    try:
        checksums = parsed_json((entry / _CHECKSUMS).read_bytes())
        for name, one in spec.items():
            # First: NumPy may raise anything for a damaged header.
            if checksums[name] != _checksum(_file(entry, name)):
                return None
            column = np.load(_file(entry, name), mmap_mode="r", allow_pickle=False)
            if column.shape != (rows, *one.shape) or column.dtype != one.dtype:
                return None
            found[name] = column
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _checksum(file: pathlib.Path) -> int:
    # CRC-32: against accidents, not forgers, and more than twice as fast as SHA-256.
    return zlib.crc32(np.memmap(file, np.uint8, "r"))


def _write(entry: pathlib.Path, spec: Spec, rows: int, chunks: Iterator[Columns]) -> None:
    """Writes an entry by plain writes: these fail on a full disk, where a memory map crashes."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    remove_old(entry.parent, ".writing-*")
    # Beside the entry: a rename is one move only within a file system.
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=".writing-", dir=entry.parent))
    try:
        with contextlib.ExitStack() as stack:
            # All columns at once: a chunk holds a part of each.
            files = {name: stack.enter_context(_file(temporary, name).open("wb")) for name in spec}
            for name, file in files.items():
                # np.save would want the whole column in memory; so the header, then chunk by chunk.
                np.lib.format.write_array_header_1_0(file, _header(spec[name], rows))
            for chunk in chunks:
                for name, file in files.items():
                    file.write(np.ascontiguousarray(chunk[name]).data)
        checksums = {name: _checksum(_file(temporary, name)) for name in spec}
        (temporary / _CHECKSUMS).write_text(json.dumps(checksums))
        _publish(temporary, entry, spec, rows)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _header(one: jax.ShapeDtypeStruct, rows: int) -> dict[str, object]:
    descr = np.lib.format.dtype_to_descr(one.dtype)
    return {"descr": descr, "fortran_order": False, "shape": (rows, *one.shape)}


def _publish(temporary: pathlib.Path, entry: pathlib.Path, spec: Spec, rows: int) -> None:
    """Renames the finished entry into place, unless another process was quicker."""
    # There, and yet it could not be loaded: damaged.
    if entry.exists() and _load(entry, spec, rows) is None:
        shutil.rmtree(entry)
    try:
        # Fails on a folder with content: that of another process, as good as this one.
        temporary.rename(entry)
    except OSError:
        if _load(entry, spec, rows) is None:
            raise


def _in_memory(spec: Spec, rows: int, chunks: Iterator[Columns]) -> Columns:
    decoded = {name: np.empty((rows, *one.shape), one.dtype) for name, one in spec.items()}
    start = 0
    for chunk in chunks:
        stop = start + len(next(iter(chunk.values())))
        for name, column in chunk.items():
            decoded[name][start:stop] = column
        start = stop
    return decoded


def _file(entry: pathlib.Path, column: str) -> pathlib.Path:
    return entry / f"{column.replace('/', '%2F')}.npy"  # TFDS has "image/filename"


def tell_once(error: OSError) -> None:
    """Warns, once, that the cache cannot be written."""
    if root() not in _told:
        _told.add(root())
        _log.warning(
            "cache %s cannot be written (%s); decoded data stays in memory. "
            "Set LSM_CACHE to another directory to keep it.",
            root(),
            error.strerror or error,
        )
