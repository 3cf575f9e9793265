"""What a source is and what it opens: a dataset read by random access over whole columns."""

import abc
import functools
import hashlib
import json
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsm.data import splits
from lsm.data.values import common
from lsm.errors import DataError, listed, nearest

Columns = dict[str, np.ndarray]
"""A batch: column name -> array whose leading dimension counts the examples."""

Spec = dict[str, jax.ShapeDtypeStruct]
"""Column name -> shape and dtype of one example (without the batch dimension)."""

Read = Callable[[Mapping[str, jax.Array], Any], dict[str, jax.Array]]
"""Pure function (columns, indices (n,)) -> the batch of these examples, on the devices."""

PathLike = str | os.PathLike[str]

_SOME = 1024  # examples read at a time for one column of all


class Dataset(abc.ABC):
    """Examples by number. Reading has no state: `take` of the same indices gives the same batch."""

    joined: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})
    """Column -> what stands side by side in it, where classes in `names` are among that."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def take(self, indices: np.ndarray) -> Columns:
        """Returns the examples `indices` (N,) as columns (N, ...), in that order; new arrays."""

    @property
    @abc.abstractmethod
    def spec(self) -> Spec:
        """Shape and dtype of one example of each column; ragged columns have dtype object."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes that the labels number, or None where there are none."""
        return None

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of what the numbers of a column stand for, by column, where that is known."""
        return {}

    @property
    def characters(self) -> str | None:
        """The characters that tokens number, in order; None unless tokens are characters."""
        return None

    @property
    def vocabulary_size(self) -> int | None:
        """Number of ids that tokens may have, or None where there are none or it is not known."""
        return None

    @property
    def encoder(self) -> Any | None:
        """What made columns of texts, `lsm.data.texts.encoder.Encoder`; None without such."""
        return None

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Returns the tokens (N,) int64 of the longest text of each example; 0 without texts."""
        return np.zeros(len(indices), np.int64)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these examples from others: saved as JSON, compared when a run goes on.

        Made of names, sizes and checksums that are at hand; the data itself is not read for it. By
        default the number of examples.
        """
        return {"examples": len(self)}

    def where(self, number: int) -> str:
        """Returns how a line names an example: by its file and row, where it has these."""
        return f"example {number:,}"

    def column(self, name: str) -> np.ndarray:
        """Returns one column of all examples (N, ...); raises DataError where there is none."""
        if name not in self.spec:
            raise DataError(
                f"there is no column {name!r}; there are {listed(self.spec)}."
                f"{nearest(name, self.spec)}"
            )
        starts = range(0, len(self), _SOME)
        rows = [np.arange(start, min(start + _SOME, len(self))) for start in starts]
        return np.concatenate([self.take(some)[name] for some in rows])

    def held(self) -> Iterator[Columns]:
        """Yields all examples, part by part, as far as their columns are in memory or mapped."""
        return iter(())

    def resident(self) -> tuple[Columns, Read] | None:
        """Returns what the examples are made of, all of it, and how a device reads them from it.

        The batch is that of `take`. None where they are not all in memory, as arrays.
        """
        return None

    def evaluation(self) -> "Dataset":
        """Returns the form that is read once from first to last; itself unless windows overlap."""
        return self

    def by_example(self) -> "Dataset":
        """Returns the form that reads no more than it is asked for; itself by default."""
        return self

    def rows(self, start: int, stop: int) -> "Dataset":
        """Returns the examples from `start` up to `stop` as a dataset, without reading them."""
        return self if (start, stop) == (0, len(self)) else _Rows(self, start, stop)


class ArrayDataset(Dataset):
    """Columns held in memory or in memory maps."""

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        classes: Sequence[str] | None = None,
        identity: Mapping[str, Any] | None = None,
    ):
        """Takes columns of equal length (N, ...), which it does not copy, and what tells them."""
        # A memory map's own class makes every indexing slower; its plain view does not.
        self.columns = {name: np.asarray(column) for name, column in columns.items()}
        self._classes = None if classes is None else tuple(classes)
        self._identity = dict(identity or {})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, indices: np.ndarray) -> Columns:
        """See `Dataset.take`."""
        return {name: column[indices] for name, column in self.columns.items()}

    @property
    def spec(self) -> Spec:
        """See `Dataset.spec`."""
        return {
            name: jax.ShapeDtypeStruct(column.shape[1:], column.dtype)
            for name, column in self.columns.items()
        }

    @property
    def classes(self) -> tuple[str, ...] | None:
        """See `Dataset.classes`."""
        return self._classes

    @property
    def identity(self) -> dict[str, Any]:
        """See `Dataset.identity`."""
        return self._identity | super().identity

    def held(self) -> Iterator[Columns]:
        """See `Dataset.held`."""
        yield self.columns

    def resident(self) -> tuple[Columns, Read] | None:
        """See `Dataset.resident`."""
        if type(self).take is not ArrayDataset.take:  # somebody's own examples, made of these
            return None
        return self.columns, lambda columns, indices: {
            name: jnp.take(x, indices, axis=0, mode="clip") for name, x in columns.items()
        }

    def rows(self, start: int, stop: int) -> Dataset:
        """See `Dataset.rows`."""
        if type(self).take is not ArrayDataset.take:
            return super().rows(start, stop)
        # Slices are views; `_Rows` would add a copy of the indices to every read.
        views = {name: column[start:stop] for name, column in self.columns.items()}
        return ArrayDataset(views, self._classes, self._identity)


class Derived(Dataset):
    """Examples of another dataset, in part or in another form: what tells of them is the same."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    spec = property(lambda self: self._dataset.spec)
    classes = property(lambda self: self._dataset.classes)
    names = property(lambda self: self._dataset.names)
    joined = property(lambda self: self._dataset.joined)
    vocabulary_size = property(lambda self: self._dataset.vocabulary_size)
    encoder = property(lambda self: self._dataset.encoder)

    @property
    def identity(self) -> dict[str, Any]:
        """See `Dataset.identity`."""
        return self._dataset.identity | super().identity

    def where(self, number: int) -> str:
        """See `Dataset.where`."""
        return self._dataset.where(number)


class _Rows(Derived):
    """The rows from `start` up to `stop`."""

    def __init__(self, dataset: Dataset, start: int, stop: int):
        super().__init__(dataset)
        self._start, self._length = start, stop - start

    def __len__(self) -> int:
        return self._length

    def take(self, indices: np.ndarray) -> Columns:
        return self._dataset.take(np.asarray(indices) + self._start)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        return self._dataset.lengths(np.asarray(indices) + self._start)

    def where(self, number: int) -> str:
        return self._dataset.where(number + self._start)

    def column(self, name: str) -> np.ndarray:
        return self._dataset.column(name)[self._start : self._start + self._length]


class _Joined(Derived):
    """Datasets of one kind, splits of one source, one after the other."""

    def __init__(self, parts: Sequence[Dataset]):
        super().__init__(parts[0])
        self._parts = tuple(parts)
        self._stops = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._stops[-1])

    @functools.cached_property
    def spec(self) -> Spec:
        # Bytes of texts are as wide as the longest of all; where one has fractions, so have all.
        specs = [part.spec for part in self._parts]
        shapes = {name: zip(*(x[name].shape for x in specs), strict=True) for name in specs[0]}
        widest = {name: tuple(map(max, sides)) for name, sides in shapes.items()}
        dtypes = {name: common(name, *(x[name].dtype for x in specs)) for name in specs[0]}
        return {name: jax.ShapeDtypeStruct(widest[name], dtypes[name]) for name in specs[0]}

    def take(self, indices: np.ndarray) -> Columns:
        batch = {
            name: np.zeros((len(indices), *one.shape), one.dtype) for name, one in self.spec.items()
        }
        for part, where, inside in self._divided(indices):
            for name, column in part.take(inside).items():
                batch[name][(where, *map(slice, column.shape[1:]))] = column
        return batch

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        lengths = np.empty(len(indices), np.int64)
        for part, where, inside in self._divided(indices):
            lengths[where] = part.lengths(inside)
        return lengths

    def _divided(self, indices: np.ndarray) -> Iterator[tuple[Dataset, np.ndarray, np.ndarray]]:
        """Yields each part that is asked for, places in `indices`, and the numbers inside it."""
        indices = np.asarray(indices)
        # Side right: the number where a part stops is the first of the next.
        part_of = np.searchsorted(self._stops, indices, side="right")
        for number, part in enumerate(self._parts):
            # One read a part, whatever the order asked for.
            where = np.flatnonzero(part_of == number)
            if len(where):
                yield part, where, indices[where] - (self._stops[number] - len(part))

    def where(self, number: int) -> str:
        part = int(np.searchsorted(self._stops, number, side="right"))
        return self._parts[part].where(number - int(self._stops[part]) + len(self._parts[part]))

    @property
    def identity(self) -> dict[str, Any]:
        return {"parts": [part.identity for part in self._parts]}

    def column(self, name: str) -> np.ndarray:
        return np.concatenate([part.column(name) for part in self._parts])

    def held(self) -> Iterator[Columns]:
        for part in self._parts:
            yield from part.held()

    def evaluation(self) -> Dataset:
        return _Joined([part.evaluation() for part in self._parts])

    def by_example(self) -> Dataset:
        return _Joined([part.by_example() for part in self._parts])


class Source(abc.ABC):
    """Where examples come from; a frozen dataclass, so that a config can hold it."""

    @abc.abstractmethod
    def open(self, split: str, data_dir: PathLike | None = None) -> Dataset:
        """Returns the examples of `split` (TFDS's slicing syntax, such as "train[:90%]").

        Raises:
          DataError: the data is not there, or it has no such split.
        """

    def splits(self, data_dir: PathLike | None = None) -> tuple[str, ...] | None:
        """Returns the names of the splits; None where they are not known before one is opened."""
        return None

    def spec(self, split: str, data_dir: PathLike | None = None) -> Spec:
        """Returns the `spec` of the dataset of `split`; opens it, unless the source knows better.

        Raises:
          DataError: the data is needed for this and is not there.
        """
        return self.open(split, data_dir).spec


class SplitSource(Source):
    """A source with named splits; it gets the slicing syntax from here."""

    @abc.abstractmethod
    def shards(self, data_dir: PathLike | None = None) -> dict[str, list[int]]:
        """Returns split name -> number of examples of each of its shards."""

    @abc.abstractmethod
    def open_split(self, name: str, data_dir: PathLike | None = None) -> Dataset:
        """Returns the whole of the split `name`, one of the keys of `shards`."""

    def splits(self, data_dir: PathLike | None = None) -> tuple[str, ...]:
        """See `Source.splits`."""
        return tuple(self.shards(data_dir))

    def open(self, split: str, data_dir: PathLike | None = None) -> Dataset:
        """See `Source.open`."""
        return select(
            split, self.shards(data_dir), lambda name: self.open_split(name, data_dir), str(self)
        )


class CountedSource(SplitSource):
    """A source whose examples are counted by opening them, of those splits alone that are named."""

    @abc.abstractmethod
    def splits(self, data_dir: PathLike | None = None) -> tuple[str, ...]:
        """See `Source.splits`; opens nothing."""

    def shards(self, data_dir: PathLike | None = None) -> dict[str, list[int]]:
        """See `SplitSource.shards`; opens."""
        return {name: [len(self.open_split(name, data_dir))] for name in self.splits(data_dir)}

    def open(self, split: str, data_dir: PathLike | None = None) -> Dataset:
        """See `Source.open`."""
        opened = functools.partial(self.open_split, data_dir=data_dir)
        return select_counted(split, self.splits(data_dir), opened, str(self))


def select(
    split: str,
    shards: Mapping[str, Sequence[int]],
    open_split: Callable[[str], Dataset],
    source: str,
) -> Dataset:
    """Returns the dataset of a split specification; opens each split that it names once."""
    ranges = splits.resolve(split, shards, source)
    # dict.fromkeys: each once and in order; "train[:10%]+train[90%:]" names one twice.
    whole = {name: open_split(name) for name in dict.fromkeys(part.name for part in ranges)}
    parts = [whole[part.name].rows(part.start, part.stop) for part in ranges]
    return parts[0] if len(parts) == 1 else _Joined(parts)


def select_counted(
    split: str, names: Sequence[str], open_split: Callable[[str], Dataset], source: str
) -> Dataset:
    """Returns what `select` does, where to count the examples of a split is to open it."""
    opened = functools.cache(open_split)
    counted = _Counted((name, functools.partial(opened, name)) for name in names)
    return select(split, counted, opened, source)


class _Counted(dict[str, Callable[[], Dataset]]):
    """Split name -> [its number of examples], opened when it is asked for."""

    def __getitem__(self, name: str) -> list[int]:
        return [len(super().__getitem__(name)())]


def digest(*facts: Any) -> str:
    """Returns a name for JSON values, for `Dataset.identity`."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
