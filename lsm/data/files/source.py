"""Files of one's own as a source."""

import dataclasses
import glob
import pathlib
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from lsm.data import cache, images
from lsm.data.dataset import ArrayDataset, Columns, Dataset, PathLike, Spec, digest
from lsm.data.files import places, records, stores, tables
from lsm.data.files.columns import Column, class_name, numbered, probed
from lsm.data.files.parts import Part
from lsm.data.source import CountedSource
from lsm.errors import ConfigError, DataError, listed, nearest
from lsm.files import expanded

_SOME = 1 << 16  # rows of one column that are read at a time


@dataclasses.dataclass(frozen=True)
class Files(CountedSource):
    """Files of one's own: tables, arrays, records, lines of text; a row is an example.

    | ending | read |
    |---|---|
    | `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json` (a JSON object a line), also `.gz` | whole |
    | `.parquet` | a row group at a time |
    | `.arrow`, `.feather`, a folder that `datasets` saved | mapped into memory |
    | `.npz`, `.h5`, `.hdf5` | the rows that are asked for |
    | `.tfrecord` (of `tf.train.Example`) | records, whose checksums are compared |
    | `.txt`, also `.gz` | column `text`, a line with its end an example |

    One file is the split "train". In a folder, or of a pattern, the names of files or of their
    folders say the split: `train.csv`, `test-00000-of-00002.parquet`, `validation/a.jsonl`; where
    none does, all are "train".

    Numbers are delivered in 32 bits, lists of one length as (N, k), texts as str and bytes as bytes
    in a column of dtype object, dates as texts, encoded pictures as uint8 (height, width,
    channels), turned as their EXIF says. A value that is missing is an error; NaN is a number.
    Splits of fixed shape and moderate size (`lsm.data.cache.MAX_BYTES`) are decoded once into the
    cache, the others read at random.

    Attributes:
      path: a file, a folder or a pattern. A relative path that is not in the working directory is
        looked for in the data directory.
      columns: names to deliver; or what is delivered by its name: a column, or several of numbers
        side by side in float32 (N, k), as in {"x": ("width", "height"), "label": "species"}. None
        is all.
      labels: columns whose values are names of classes: delivered ones become their places in the
        sorted values of all splits, int32; one that is put side by side with others becomes a
        column for each of these values, 1 where it is that and else 0.
      size: pictures are resized to this, N or (height, width); None keeps their size.
    """

    path: str
    columns: tuple[str, ...] | Mapping[str, str | tuple[str, ...]] | None = None
    labels: tuple[str, ...] = ()
    size: int | tuple[int, int] | None = None

    def __post_init__(self):
        if not self.path:
            raise ConfigError("Files.path: is empty; give a file, a folder or a pattern.")
        for field in ("columns", "labels"):
            if isinstance(value := getattr(self, field), str):
                raise ConfigError(f"Files.{field}: {value!r} is one string; give a tuple.")
        images.as_size(self.size, "Files.size")

    def __str__(self) -> str:
        return f"files {self.path}"

    def splits(self, data_dir: PathLike | None = None) -> tuple[str, ...]:
        """See `Source.splits`; no file is opened."""
        return tuple(self._files(data_dir))

    def shards(self, data_dir: PathLike | None = None) -> dict[str, list[int]]:
        """See `SplitSource.shards`."""
        found = self._files(data_dir)
        return {name: [len(part) for part in self._parts(files)] for name, files in found.items()}

    def open_split(self, name: str, data_dir: PathLike | None = None) -> Dataset:
        """See `SplitSource.open_split`."""
        found = self._files(data_dir)
        parts = {name: self._parts(found[name])}
        if not any(map(len, parts[name])):
            raise DataError(f"split {name!r} of {self} holds no example.")
        if self.labels or parts[name][0].classes:  # numbered alike in all splits
            parts |= {other: self._parts(found[other]) for other in found if other != name}
        _check_classes([part for some in parts.values() for part in some], self.labels)
        examples = _Examples(parts[name], self._columns(parts, name))
        if all(part.held for part in parts[name]):
            return cache.Cached(examples, examples.in_memory)
        if not cache.fits(examples.spec, len(examples)):
            return examples
        paths = [file.as_posix() for file in found[name]]
        known = examples.names if examples.joined else examples.classes or examples.names
        settings = (self.columns, self.labels, self.size, known)
        key = cache.fingerprint(found[name], paths, *settings, "upright")
        return cache.cached(f"{pathlib.Path(self.path).name}-{name}", key, examples)

    def _files(self, data_dir: PathLike | None) -> dict[str, list[pathlib.Path]]:
        path = expanded(self.path, "Files.path")
        here = data_dir is None or path.exists() or any(glob.iglob(str(path)))
        return places.find(path if here else pathlib.Path(data_dir) / path)

    def _parts(self, files: Sequence[pathlib.Path]) -> list[Part]:
        of = self.columns or ()
        given = of.values() if isinstance(of, Mapping) else of
        wanted = {x for one in given for x in ([one] if isinstance(one, str) else one)}
        parts = [part for file in files for part in _open(file, wanted)]
        return [part for part in parts if len(part)] or parts[:1]

    def _columns(self, parts: Mapping[str, Sequence[Part]], split: str) -> list[Column]:
        own, everywhere = parts[split], [part for some in parts.values() for part in some]
        wanted = self.columns if self.columns is not None else tuple(own[0].names)
        if not isinstance(wanted, Mapping):
            wanted = {name: name for name in wanted}
        single = {name for name, of in wanted.items() if isinstance(of, str)}
        beside = [one for name, of in wanted.items() if name not in single for one in of]
        _check_labels(self.labels, sorted(single.union(beside)))
        size, columns = images.as_size(self.size, "Files.size"), []
        for name, of in wanted.items():
            column = Column(name, of if name in single else tuple(of), size=size)
            _check_names(own, column.needed)
            if name in single and name in self.labels:
                column = dataclasses.replace(column, numbers=_numbers(everywhere, of, name))
            elif name not in single:
                classes = [one for one in of if one in self.labels and one not in single]
                one_hot = {one: _numbers(everywhere, one, one) for one in classes}
                column = dataclasses.replace(column, one_hot=one_hot)
            columns.append(column)
        # What is in memory costs nothing to look at; of the rest, the first part speaks for all.
        return probed(columns, own if all(part.held for part in own) else own[:1])


class _Examples(Dataset):
    """Rows of files, read when they are taken."""

    def __init__(self, parts: Sequence[Part], columns: Sequence[Column]):
        self._parts, self._columns = parts, columns
        self._stops = np.cumsum([len(part) for part in parts])
        self._files = {part.file: part.file.stat().st_size for part in parts}

    def __len__(self) -> int:
        return int(self._stops[-1])

    def take(self, indices: np.ndarray) -> Columns:
        """See `Dataset.take`."""
        return self._take(np.asarray(indices), self._columns)

    def _take(self, indices: np.ndarray, columns: Sequence[Column]) -> Columns:
        needed = tuple(dict.fromkeys(name for column in columns for name in column.needed))
        batch = {c.name: np.empty((len(indices), *c.one.shape), c.one.dtype) for c in columns}
        part_of = np.searchsorted(self._stops, indices, side="right")
        for number in np.unique(part_of):
            part, where = self._parts[number], np.flatnonzero(part_of == number)
            rows = indices[where] - (self._stops[number] - len(part))
            part.check_unchanged()
            stored = part.read(needed, rows)
            for column in columns:
                batch[column.name][where] = column.made(stored, part, rows)
        return batch

    @property
    def spec(self) -> Spec:
        """See `Dataset.spec`."""
        return {column.name: column.one for column in self._columns}

    @property
    def classes(self) -> tuple[str, ...] | None:
        """See `Dataset.classes`: of the column of `labels`, else as a file names them.

        None of several: whose names would they be?
        """
        labels = [column.name for column in self._columns if column.numbers is not None]
        if labels:
            return self.names[labels[0]] if len(labels) == 1 else None
        named = self._parts[0].classes
        return next((named[c.sources] for c in self._columns if c.sources in named), None)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """See `Dataset.names`: of the columns of `labels`, and of those that a file names."""
        named = self._parts[0].classes
        one_hot = {name: of for c in self._columns for name, of in c.one_hot.items()}
        return {name: tuple(map(class_name, of)) for name, of in one_hot.items()} | {
            c.name: named[c.sources] if c.numbers is None else tuple(map(class_name, c.numbers))
            for c in self._columns
            if c.numbers is not None or c.sources in named
        }

    @property
    def joined(self) -> dict[str, tuple[str, ...]]:
        """See `Dataset.joined`."""
        return {c.name: c.needed for c in self._columns if c.one_hot}

    @property
    def identity(self) -> dict[str, Any]:
        """See `Dataset.identity`: names and sizes of the files, and how they are read."""
        files = [(file.name, size) for file, size in self._files.items()]
        made = [(c.name, c.sources, c.one.shape, str(c.one.dtype)) for c in self._columns]
        known = self.names if self.joined else self.classes or self.names or None
        return super().identity | {"files": digest(files, made, known)}

    def where(self, number: int) -> str:
        """See `Dataset.where`."""
        part = self._parts[at := int(np.searchsorted(self._stops, number, side="right"))]
        return part.row(number - self._stops[at] + len(part))

    def column(self, name: str) -> np.ndarray:
        """See `Dataset.column`; may also be a column of the files that is not delivered."""
        found = [column for column in self._columns if column.name == name]
        if not found:
            _check_names(self._parts, (name,))
            return _values(self._parts, name)
        rows = range(0, len(self), _SOME)
        taken = [self._take(np.arange(i, min(i + _SOME, len(self))), found) for i in rows]
        return np.concatenate([batch[name] for batch in taken])

    def in_memory(self) -> ArrayDataset:
        """Returns all of it."""
        return ArrayDataset(self.take(np.arange(len(self))), self.classes, self.identity)


def _open(file: pathlib.Path, wanted: Set[str]) -> list[Part]:
    match places.kind(file):
        case ".npz":
            return stores.open_npz(file, wanted)
        case ".h5" | ".hdf5":
            return stores.open_hdf5(file, wanted)
        case ".tfrecord" | ".tfrecords":
            return [records.TfRecords(file)]
        case ".txt":
            return [records.Lines(file)]
        case ending:
            return tables.open_table(file, ending)


def _values(parts: Sequence[Part], name: str) -> np.ndarray:
    """All values of a column as they are stored."""
    read = [
        part.read((name,), np.arange(start, min(start + _SOME, len(part))))[name]
        for part in parts
        for start in range(0, len(part), _SOME)
    ]
    return np.concatenate(read)


def _numbers(parts: Sequence[Part], of: str, name: str) -> dict[Any, int]:
    """Value -> number, of labels: a split, such as one that is to be predicted, may have none."""
    return numbered(_values([part for part in parts if of in part.names], of), name)


def _check_classes(parts: Sequence[Part], labels: Sequence[str]) -> None:
    """Raises DataError where two files number the classes of a column otherwise."""
    first: dict[str, Part] = {}
    for part in parts:
        for name in part.classes.keys() - {*labels}:  # which are numbered by their values
            here, there = part.classes[name], first.setdefault(name, part).classes[name]
            if here != there:
                raise DataError(
                    f"{part.file}: its classes of column {name!r} are {listed(here)}, and those of "
                    f"{first[name].file} {listed(there)}; the same in one order are needed."
                )


def _check_labels(labels: Sequence[str], allowed: Sequence[str]) -> None:
    for name in labels:
        if name not in allowed:
            raise DataError(
                f"Files.labels: {name!r} is no column that is delivered, by itself or beside "
                f"others; there are {listed(allowed)}.{nearest(name, allowed)}"
            )


def _check_names(parts: Sequence[Part], names: Sequence[str]) -> None:
    for part in {part.file: part for part in parts}.values():
        for name in names:
            if name not in part.names:
                raise DataError(
                    f"{part.file} has no column {name!r}; it has {listed(part.names)}."
                    f"{nearest(name, part.names)}"
                )
