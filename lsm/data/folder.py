"""A tree of pictures, one folder a class."""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import jax
import numpy as np

from lsm.data import cache, images
from lsm.data.dataset import (
    Columns,
    Dataset,
    PathLike,
    Spec,
    SplitSource,
    digest,
)
from lsm.errors import ConfigError, DataError
from lsm.files import expanded

_DEEPEST = 5  # parts of a path in the tree that are looked for; a loop of links ends there


@dataclasses.dataclass(frozen=True)
class Folder(SplitSource):
    """Pictures in `path/SPLIT/CLASS/*.jpg`, or in `path/CLASS/*.jpg` (all of it split "train").

    One of the two forms: a picture at another depth is an error. Hidden files are not seen.

    Columns `image` uint8 (height, width, 3), resized to `size` whatever the aspect ratio, and
    `label` int32, the place of the class in the sorted names of all splits. The order within a
    split is by a hash of the file's path in the tree, so that a slice is a random sample.

    Attributes:
      path: the tree; a relative path is looked for in the data directory, or where none is given
        in the working directory.
      size: pictures are resized to this, N or (height, width).
    """

    path: str
    size: int | tuple[int, int] = 224

    def __post_init__(self):
        if images.as_size(self.size, "Folder.size") is None:
            raise ConfigError("Folder.size: None is not a size; give N or (height, width).")

    def __str__(self) -> str:
        return f"folder {self.path}"

    def shards(self, data_dir: PathLike | None = None) -> dict[str, list[int]]:
        """See `SplitSource.shards`."""
        return {split: [len(files)] for split, files in self._tree(data_dir)[0].items()}

    def open_split(self, name: str, data_dir: PathLike | None = None) -> Dataset:
        """See `SplitSource.open_split`."""
        splits, classes = self._tree(data_dir)
        pictures = _Pictures(splits[name], classes, images.as_size(self.size, "Folder.size"))
        # Too many to decode ahead: then for every batch, by `Data.workers` threads.
        if not cache.fits(pictures.spec, len(pictures)):
            return pictures
        # The paths are facts too: files of two classes can have the same names, sizes and times.
        paths = [file.as_posix() for file in splits[name]]
        key = cache.fingerprint(splits[name], paths, classes, self.size)
        return cache.cached(f"{pathlib.Path(self.path).name}-{name}", key, pictures)

    def _tree(
        self, data_dir: PathLike | None
    ) -> tuple[dict[str, list[pathlib.Path]], tuple[str, ...]]:
        return tree(pathlib.Path(data_dir or ".") / expanded(self.path, "Folder.path"))


class _Pictures(Dataset):
    """Files read and decoded when they are taken."""

    def __init__(self, files: list[pathlib.Path], classes: tuple[str, ...], size: tuple[int, int]):
        self._files, self._classes, self._size = files, classes, size
        numbers = {name: number for number, name in enumerate(classes)}
        self._label = np.array([numbers[file.parent.name] for file in files], np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def take(self, indices: np.ndarray) -> Columns:
        pictures = [read(self._files[i], self._size) for i in np.asarray(indices).tolist()]
        return {"image": np.stack(pictures), "label": self._label[indices]}

    @property
    def spec(self) -> Spec:
        return {
            "image": jax.ShapeDtypeStruct((*self._size, 3), np.uint8),
            "label": jax.ShapeDtypeStruct((), np.int32),
        }

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    def column(self, name: str) -> np.ndarray:
        return self._label if name == "label" else super().column(name)

    @property
    def identity(self) -> dict[str, Any]:
        files = [(f.parent.name, f.name, f.stat().st_size) for f in self._files]
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


def tree(root: pathlib.Path) -> tuple[dict[str, list[pathlib.Path]], tuple[str, ...]]:
    """Returns (split name -> files, class names sorted) of a class-per-folder tree.

    Raises:
      DataError: there is no such folder, it cannot be read, no picture is one or two folders down,
        or they are at different depths.
    """
    if not os.path.isdir(root):
        raise DataError(
            f"folder {root} is not there; give the folder that holds the class folders."
        )
    by_depth = _pictures(root)
    if len(by_depth) > 1:
        one, other = (files[0].relative_to(root) for files in list(by_depth.values())[:2])
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
    for file in files:
        split = file.relative_to(root).parts[0] if depth == 3 else "train"
        splits.setdefault(split, []).append(file)
    return splits, tuple(sorted({file.parent.name for file in files}))


def _pictures(root: pathlib.Path) -> dict[int, list[pathlib.Path]]:
    """Returns the pictures of a tree, by the number of parts of their path in it."""

    def fail(error: OSError) -> None:
        raise DataError(f"folder {error.filename} cannot be read: {error.strerror}.") from error

    found = {}
    for folder, inside, names in os.walk(root, onerror=fail, followlinks=True):
        depth = len(pathlib.Path(folder).relative_to(root).parts) + 1
        # Hidden folders are no classes: notebooks and desktops make copies in such.
        inside[:] = [name for name in inside if depth < _DEEPEST and not name.startswith(".")]
        files = [pathlib.Path(folder, name) for name in names if not name.startswith(".")]
        pictures = [file for file in files if file.suffix.lower() in images.SUFFIXES]
        if pictures:
            found.setdefault(depth, []).extend(pictures)
    return {
        depth: sorted(files, key=lambda file: _hash(file.relative_to(root)))
        for depth, files in sorted(found.items())
    }


def _hash(path: pathlib.PurePath) -> bytes:
    # Python's own hash() of a text differs from process to process; fsencode takes any name.
    return hashlib.sha256(os.fsencode(path.as_posix())).digest()
