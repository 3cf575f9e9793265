"""What a source is: where the examples of a split come from, in TFDS's slicing syntax."""

import abc
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lsm.data import splits
from lsm.data.dataset import Columns, Dataset, Derived, PathLike, Spec
from lsm.data.values import common
from lsm.errors import DataError


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
        for spec in specs[1:]:
            _check_alike(specs[0], spec, self.encoder is not None)
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


def _check_alike(first: Spec, other: Spec, texts: bool) -> None:
    """Raises DataError where examples of two splits differ in columns or shapes.

    Args:
      first: of one split.
      other: of the one that is joined to it.
      texts: whether bytes of texts may be among them, which differ in length.
    """
    for name in {**first, **other}:
        if name not in first or name not in other:
            raise DataError(f"column {name!r} is not in all of the splits that are joined.")
        a, b = first[name], other[name]
        lengths = texts and a.dtype == b.dtype == np.uint8 and len(a.shape) == len(b.shape) == 1
        if a.shape != b.shape and not lengths:
            raise DataError(
                f"column {name!r} is {a.shape} in one of the splits that are joined and {b.shape} "
                "in another; one shape is needed."
            )
