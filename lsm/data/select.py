"""Some classes of another source, and so many examples of each."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsm.checks import require
from lsm.data.dataset import Columns, Dataset, PathLike, Read
from lsm.data.divide import Chosen
from lsm.data.source import CountedSource, SplitSource
from lsm.errors import ConfigError, DataError, listed, nearest


@dataclasses.dataclass(frozen=True)
class Select(CountedSource):
    """Another source, of which some classes are taken, and as many examples of each as wanted.

    Labels become 0, 1, ... in the order of `classes`. The examples of a split keep their order, so
    that a slice of it is a slice of all classes where it was one.

    Attributes:
      source: what is taken from.
      classes: names of the classes, at least one.
      per_class: examples of each class by split, such as {"train": 500}, drawn as a function of the
        seed alone; of splits not named, all.
      label: column with the labels that the names number.
      seed: of the draw, at least 0.
    """

    source: SplitSource
    classes: tuple[str, ...]
    per_class: Mapping[str, int] = dataclasses.field(default_factory=dict)
    label: str = "label"
    seed: int = 0

    def __post_init__(self):
        given = self.classes if isinstance(self.classes, tuple | list) else ()
        if not given or len({*given}) < len(given) or not all(isinstance(x, str) for x in given):
            raise ConfigError(
                f"Select.classes: {self.classes!r} given; different names are needed, as in "
                '("cat", "dog").'
            )
        counts = self.per_class.values() if isinstance(self.per_class, Mapping) else (None,)
        if any(type(count) is not int or count < 1 for count in counts):
            raise ConfigError(
                f"Select.per_class: {self.per_class!r} given; a whole number above 0 by split is "
                'needed, as in {"train": 500}.'
            )
        require(self, seed="[0, inf)")

    def __str__(self) -> str:
        return f"{self.source}, {listed(self.classes)}"

    def splits(self, data_dir: PathLike | None = None) -> tuple[str, ...]:
        """See `Source.splits`."""
        return tuple(self.source.splits(data_dir))

    def open(self, split: str, data_dir: PathLike | None = None) -> Dataset:
        """See `Source.open`."""
        if strange := [name for name in self.per_class if name not in self.splits(data_dir)]:
            raise DataError(
                f"Select.per_class: {self.source} has no split {strange[0]!r}; it has "
                f"{listed(self.splits(data_dir))}.{nearest(strange[0], self.splits(data_dir))}"
            )
        return super().open(split, data_dir)

    def open_split(self, name: str, data_dir: PathLike | None = None) -> Dataset:
        """See `SplitSource.open_split`."""
        dataset, wanted = self.source.open_split(name, data_dir), self.per_class.get(name)
        known = _called(dataset, self.label)
        for kind in self.classes:
            if kind not in known:
                raise DataError(
                    f"Select.classes: {self.source} has no class {kind!r}; it has "
                    f"{listed(known) or 'none with a name'}.{nearest(kind, known)}"
                )
        labels = dataset.column(self.label)
        draws = np.random.Philox(key=self.seed).random_raw(len(labels))
        chosen = []
        for kind in self.classes:
            numbers = np.flatnonzero(labels == known.index(kind))
            if len(numbers) < (wanted or 1):
                raise DataError(
                    f"Select.per_class: {wanted or 1} of {kind!r} wanted; split {name!r} of "
                    f"{self.source} has {len(numbers)}."
                )
            chosen.append(numbers[np.argsort(draws[numbers], kind="stable")][:wanted])
        return _Renumbered(dataset, np.sort(np.concatenate(chosen)), self.label, self.classes)


class _Renumbered(Chosen):
    """Some examples, with labels that number other names."""

    def __init__(self, dataset: Dataset, numbers: np.ndarray, label: str, classes: tuple[str, ...]):
        super().__init__(dataset, numbers)
        self._label, self._classes = label, classes
        # Of the classes that are left out there is no example.
        known = _called(dataset, label)
        self._table = np.zeros(len(known), dataset.spec[label].dtype)
        self._table[[known.index(kind) for kind in classes]] = np.arange(len(classes))

    def _renumbered(self, columns: Columns) -> Columns:
        return columns | {self._label: self._table[columns[self._label]]}

    def take(self, indices: np.ndarray) -> Columns:
        return self._renumbered(super().take(indices))

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        return {**self._dataset.names, self._label: self._classes}

    @property
    def identity(self) -> dict[str, Any]:
        return super().identity | {"classes": list(self._classes)}

    def column(self, name: str) -> np.ndarray:
        column = super().column(name)
        return self._table[column] if name == self._label else column

    def held(self) -> Iterator[Columns]:
        return map(self._renumbered, super().held())

    def resident(self) -> tuple[Columns, Read] | None:
        whole = super().resident()
        if whole is None:
            return None
        columns, read = whole

        def renumbered(held: Mapping[str, jax.Array], indices: Any) -> dict[str, jax.Array]:
            batch = read(held, indices)
            return batch | {self._label: jnp.asarray(self._table)[batch[self._label]]}

        return columns, renumbered

    def by_example(self) -> Dataset:
        return _Renumbered(self._dataset.by_example(), self._numbers, self._label, self._classes)


def _called(dataset: Dataset, label: str) -> tuple[str, ...]:
    return dataset.names.get(label) or dataset.classes or ()
