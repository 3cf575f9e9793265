"""A dataset, what a source opens: read by random access over whole columns."""

import abc
import hashlib
import json
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


def digest(*facts: Any) -> str:
    """Returns a name for JSON values, for `Dataset.identity`."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
