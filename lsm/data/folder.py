"""A tree of pictures, one folder a class."""

import dataclasses
import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from lsm.data import cache, images
from lsm.data.dataset import Columns, Dataset, PathLike, Spec, digest
from lsm.data.source import SplitSource
from lsm.errors import DataError, listed
from lsm.files import expanded

_DEEPEST = 5  # parts of a path in the tree that are looked for; a loop of links ends there
_log = logging.getLogger("lsm.data")
_told: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Folder(SplitSource):
    """Pictures in `path/SPLIT/CLASS/*.jpg`, or in `path/CLASS/*.jpg` (all of it split "train").

    One of the two forms: a picture at another depth is an error, and so is a class folder without
    one. Hidden files are not seen, and those with other endings are left out, which is said. What
    cannot be read as a picture is an error before the first step, of a split that is decoded for
    every batch as far as the beginning of a file tells.

    Columns `image` uint8 (height, width, 3), resized to `size` whatever the aspect ratio, and
    `label` int32, the place of the class in the sorted names of all splits. The order within a
    split is by a hash of the file's path in the tree, so that a slice is a random sample.

    Attributes:
      path: the tree; a relative path is looked for in the data directory, or where none is given
        in the working directory.
      size: pictures are resized to this, N or (height, width); None leaves each its own, for
        `Data.augment` and `Data.evaluate` to bring all to one.
      skip_bad: leaves out what cannot be read, and says how many and which. For this each file is
        decoded once, when the tree is first opened.
    """

    path: str
    size: int | tuple[int, int] | None = 224
    skip_bad: bool = False

    def __post_init__(self):
        images.as_size(self.size, "Folder.size")

    def __str__(self) -> str:
        return f"folder {self.path}"

    def shards(self, data_dir: PathLike | None = None) -> dict[str, list[int]]:
        """See `SplitSource.shards`."""
        return {split: [len(files)] for split, files in self._tree(data_dir)[0].items()}

    def open_split(self, name: str, data_dir: PathLike | None = None) -> Dataset:
        """See `SplitSource.open_split`."""
        splits, classes = self._tree(data_dir)
        files, called = splits[name], f"{pathlib.Path(self.path).name}-{name}"
        pictures = _Pictures(files, classes, images.as_size(self.size, "Folder.size"))
        # Too many to decode ahead: then for every batch, by `Data.workers` threads.
        if not cache.fits(pictures.spec, len(pictures)):
            for file, fault in [] if self.skip_bad else _faults(called, files, images.check):
                raise DataError(f"picture {file} cannot be read: {fault}")
            return pictures
        return cache.cached(called, _key(files, classes, self.size, "upright"), pictures)

    def _tree(
        self, data_dir: PathLike | None
    ) -> tuple[dict[str, list[pathlib.Path]], tuple[str, ...]]:
        root = pathlib.Path(data_dir or ".") / expanded(self.path, "Folder.path")
        splits, classes = tree(root, self.skip_bad)
        return (_without_bad(root, splits), classes) if self.skip_bad else (splits, classes)


class _Pictures(Dataset):
    """Files read and decoded when they are taken."""

    def __init__(
        self, files: list[pathlib.Path], classes: tuple[str, ...], size: tuple[int, int] | None
    ):
        self._files, self._classes, self._size = files, classes, size
        numbers = {name: number for number, name in enumerate(classes)}
        self._label = np.array([numbers[file.parent.name] for file in files], np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def take(self, indices: np.ndarray) -> Columns:
        pictures = [read(self._files[i], self._size) for i in np.asarray(indices).tolist()]
        image = np.stack(pictures) if self._size else images.ragged(pictures)
        return {"image": image, "label": self._label[indices]}

    @property
    def spec(self) -> Spec:
        image = ((*self._size, 3), np.uint8) if self._size else ((), object)
        return {
            "image": jax.ShapeDtypeStruct(*image),
            "label": jax.ShapeDtypeStruct((), np.int32),
        }

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    def column(self, name: str) -> np.ndarray:
        return self._label if name == "label" else super().column(name)

    @property
    def identity(self) -> dict[str, Any]:
        files = [(f.parent.name, f.name, size(f)) for f in self._files]
        return super().identity | {"files": digest(files, self._classes)}


def read(file: pathlib.Path, size: tuple[int, int] | None) -> np.ndarray:
    """Returns the picture in `file` as uint8 (height, width, 3).

    Raises:
      DataError: it cannot be read as a picture.
    """
    try:
        return images.decode(file, 3, size)
    except ValueError as error:
        raise DataError(f"picture {file} cannot be read: {error}") from error


def size(file: pathlib.Path) -> int:
    """Returns the bytes of a file; raises DataError where it is a broken link, say."""
    try:
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"picture {file} cannot be read: {error.strerror}.") from error


def tree(
    root: pathlib.Path, skip_bad: bool = False
) -> tuple[dict[str, list[pathlib.Path]], tuple[str, ...]]:
    """Returns (split name -> files, class names sorted) of a class-per-folder tree.

    Args:
      root: the tree.
      skip_bad: a class folder without a picture is no class, and no error.

    Raises:
      DataError: there is no such folder, it cannot be read, no picture is one or two folders down,
        they are at different depths, or a class folder holds none.
    """
    if not os.path.isdir(root):
        raise DataError(
            f"folder {root} is not there; give the folder that holds the class folders."
        )
    folders = dict(_folders(root))
    by_depth: dict[int, list[pathlib.Path]] = {}
    for folder, (files, _) in folders.items():
        by_depth.setdefault(len(folder.parts) + 1, []).extend(files)
    by_depth = {depth: files for depth, files in sorted(by_depth.items()) if files}
    if len(by_depth) > 1:
        one, other = (min(files, key=_hash) for files in list(by_depth.values())[:2])
        raise DataError(
            f"folder {root}: {one} and {other} are at different depths; all pictures must be "
            "CLASS/FILE, or all SPLIT/CLASS/FILE. Move the one that is astray."
        )
    if not by_depth.keys() & {2, 3}:
        raise DataError(
            f"folder {root} holds no picture as CLASS/FILE or SPLIT/CLASS/FILE "
            f"({', '.join(images.SUFFIXES)})."
        )
    ((depth, files),) = by_depth.items()
    splits: dict[str, list[pathlib.Path]] = {}
    for file in sorted(files, key=_hash):
        splits.setdefault(file.parts[0] if depth == 3 else "train", []).append(root / file)
    # A folder beside the splits is none of theirs.
    kinds = {f: x for f, x in folders.items() if len(f.parts) == depth - 1}
    kinds = {f: x for f, x in kinds.items() if depth == 2 or f.parts[0] in splits}
    empty = sorted(folder.as_posix() for folder, (found, _) in kinds.items() if not found)
    if empty and not skip_bad:
        raise DataError(
            f"folder {root}: {listed(empty)}: no picture in there; remove it, or put some there."
        )
    _tell("pictures by their endings", root, empty + [o for _, (_, x) in kinds.items() for o in x])
    return splits, tuple(sorted({file.parent.name for file in files}))


def _folders(
    root: pathlib.Path,
) -> Iterator[tuple[pathlib.Path, tuple[list[pathlib.Path], list[str]]]]:
    """Yields each folder of a tree, with its pictures and its other files; all without the root."""

    def fail(error: OSError) -> None:
        raise DataError(f"folder {error.filename} cannot be read: {error.strerror}.") from error

    for folder, inside, names in os.walk(root, onerror=fail, followlinks=True):
        here = pathlib.Path(folder).relative_to(root)
        # Hidden folders are no classes: notebooks and desktops make copies in such.
        inside[:] = [n for n in inside if len(here.parts) + 1 < _DEEPEST and not n.startswith(".")]
        files = [here / name for name in names if not name.startswith(".")]
        pictures = [file for file in files if file.suffix.lower() in images.SUFFIXES]
        others = [file.as_posix() for file in files if file.suffix.lower() not in images.SUFFIXES]
        yield here, (pictures, others)


def _without_bad(
    root: pathlib.Path, splits: dict[str, list[pathlib.Path]]
) -> dict[str, list[pathlib.Path]]:
    """Returns the files of each split that can be read as pictures.

    Raises:
      DataError: of a class in a split there is none.
    """
    left, told = {}, []
    for name, files in splits.items():
        faults = dict(_faults(f"{root.name}-{name}", files, images.decode))
        left[name] = [file for file in files if file not in faults]
        told += [f"{file.relative_to(root)} ({why})" for file, why in faults.items()]
        if gone := {f.parent for f in files} - {f.parent for f in left[name]}:
            raise DataError(f"folder {min(gone)}: none of its pictures can be read.")
    _tell("pictures that can be read", root, told)
    return left


def _faults(
    name: str, files: list[pathlib.Path], check: Callable[[pathlib.Path], Any]
) -> Iterator[tuple[pathlib.Path, str]]:
    """Yields the files of which `check` raises ValueError, and why; asked once, and kept."""
    there = [file for file in files if file.exists()]
    yield from ((file, "there is no such file") for file in files if not file.exists())
    key = _key(there, check.__name__)
    faults = cache.columns(f"{name}-checked", key, _Checked(there, check))["fault"]
    for place in np.flatnonzero(faults != b""):
        yield there[place], faults[place].decode(errors="replace")


class _Checked(Dataset):
    """What is wrong with each of some files: "fault", at most 200 bytes, b"" where nothing is."""

    def __init__(self, files: list[pathlib.Path], check: Callable[[pathlib.Path], Any]):
        self._files, self._check = files, check

    def __len__(self) -> int:
        return len(self._files)

    def take(self, indices: np.ndarray) -> Columns:
        faults = [self._fault(self._files[i]) for i in np.asarray(indices).tolist()]
        return {"fault": np.array(faults, self.spec["fault"].dtype)}

    def _fault(self, file: pathlib.Path) -> bytes:
        try:
            self._check(file)
        except ValueError as error:
            return str(error).encode()
        return b""

    @property
    def spec(self) -> Spec:
        return {"fault": jax.ShapeDtypeStruct((), np.dtype("S200"))}


def _key(files: list[pathlib.Path], *facts: Any) -> str:
    # The paths are facts too: files of two classes can have the same names, sizes and times.
    return cache.fingerprint(files, [file.as_posix() for file in files], *facts)


def _tell(what: str, root: pathlib.Path, others: list[str]) -> None:
    """Warns once of what is left out of a tree."""
    line = f"folder {root}: {len(others)} no {what}, and left out: {listed(sorted(others), 3)}."
    if others and line not in _told:
        _told.add(line)
        _log.warning("%s", line)


def _hash(path: pathlib.PurePath) -> bytes:
    # Python's own hash() of a text differs from process to process; fsencode takes any name.
    return hashlib.sha256(os.fsencode(path.as_posix())).digest()
