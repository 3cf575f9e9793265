"""Which files a path means, and which split each of them belongs to."""

import collections
import glob
import pathlib
import re

from lsm.errors import DataError, listed
from lsm.files import nothing_at, parsed_json

ENDINGS = (
    *(".csv", ".tsv", ".parquet", ".arrow", ".feather", ".jsonl", ".ndjson", ".json"),
    *(".h5", ".hdf5", ".npz", ".tfrecord", ".tfrecords", ".txt"),
)
"""Endings, in lower case, of the files that are read; tables and texts also with ".gz" behind."""

_SHARD = re.compile(r"-\d+-of-\d+")
_SPLIT = re.compile(
    r"(?<![a-z])(training|train|validation|valid|val|dev|testing|test|evaluation|eval)(?![a-z])"
)
# Beside the data of a folder that Hugging Face's `datasets` saved.
_ABOUT = {"state.json", "dataset_info.json", "dataset_dict.json", "dataset_infos.json"}


def kind(file: pathlib.PurePath) -> str | None:
    """Returns the ending that tells what a file holds, None where it is none of `ENDINGS`.

    ".csv" also for "a.csv.gz", ".tfrecord" also for "a.tfrecord-00000-of-00002".
    """
    ending = pathlib.PurePath(_SHARD.sub("", file.name.lower()).removesuffix(".gz")).suffix
    return ending if ending in ENDINGS else None


def find(path: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns split name -> its files, in the order of their paths.

    One file is the split "train". Of a folder, or a pattern such as "data/*.csv", each file's name
    or its folder's says the split ("train-00000-of-00002.parquet", "test/a.csv"); where none does,
    all are "train".

    Raises:
      DataError: nothing is there, files are of different kinds, or some name a split and others
        none.
    """
    if path.is_file():
        if kind(path) is None:
            raise DataError(f"file {path} has none of the endings {', '.join(ENDINGS)}.")
        return {"train": [path]}
    root, files = (path, _inside(path)) if path.is_dir() else _matches(path)
    if not files:
        raise DataError(f"{path} holds no file that ends in {', '.join(ENDINGS)}.")
    (usual, _), *others = collections.Counter(map(kind, files)).most_common()
    if others:
        strange = next(file for file in files if kind(file) != usual)
        raise DataError(
            f"{path}: {strange.name} is of another kind than the {usual} files; give one kind, as "
            f"'{root / f'*{usual}*'}'."
        )
    return _by_split(root, files)


def _by_split(root: pathlib.Path, files: list[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    named = {file: _split(file.relative_to(root)) for file in files}
    if not any(named.values()):
        return {"train": files}
    splits: dict[str, list[pathlib.Path]] = {}
    for file, split in named.items():
        if split is None:
            other = next(file for file, split in named.items() if split)
            raise DataError(
                f"{root}: {file.name} names no split, as {other.relative_to(root)} does; "
                "rename it, or give a pattern that leaves it out."
            )
        splits.setdefault(split, []).append(file)
    return splits


def _split(relative: pathlib.PurePath) -> str | None:
    """The split that a file's name says, or its folder's; else the folder is one."""
    stem = _SHARD.sub("", relative.name).partition(".")[0]
    folders = relative.parts[:-1][::-1]
    for name in (stem, *folders):
        if found := _SPLIT.search(name.lower()):
            return found[0]
    return folders[0] if folders else None


def _inside(root: pathlib.Path) -> list[pathlib.Path]:
    folders = [root, *(path for path in sorted(root.glob("[!.]*")) if path.is_dir())]
    return [file for folder in folders for file in _of_folder(folder)]


def _of_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    state = folder / "state.json"
    if state.is_file():
        try:  # `save_to_disk` says which; old caches may lie beside them
            names = [one["filename"] for one in parsed_json(state.read_bytes())["_data_files"]]
            return [folder / name for name in names]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{state} is damaged: {error!r}.") from error
    files = [f for f in sorted(folder.glob("[!.]*")) if f.name not in _ABOUT and f.is_file()]
    return [file for file in files if kind(file)]


def _matches(path: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The folder before the first wildcard, and the files that a pattern meets."""
    found = sorted(map(pathlib.Path, glob.glob(str(path), recursive=True)))
    files = [file for file in found if file.is_file()]
    if not files:
        raise DataError(nothing_at(path))
    if strange := [file.name for file in files if kind(file) is None]:
        raise DataError(f"{path}: {listed(strange, 3)}: none of the endings {', '.join(ENDINGS)}.")
    fixed = [part for part in path.parts if not glob.has_magic(part)]
    steady = path.parts[: next(i for i, p in enumerate(path.parts) if p not in fixed)]
    return pathlib.Path(*steady), files
