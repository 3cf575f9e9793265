"""Columns in memory as a source."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lsm.data.dataset import ArrayDataset, Dataset, PathLike
from lsm.data.source import SplitSource
from lsm.data.values import narrowed
from lsm.errors import ConfigError


@dataclasses.dataclass(frozen=True, eq=False)  # == of arrays has no truth value
class Arrays(SplitSource):
    """Arrays that are already in memory, for use from Python.

    64-bit integers and floats are delivered as 32-bit ones, which is what JAX computes in.

    Attributes:
      train: columns (N, ...) of the split "train", by name.
      validation: columns of the split "validation", if there is one.
      test: columns of the split "test", if there is one.
      classes: names of the classes that the labels number.
    """

    train: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray] | None = None
    test: Mapping[str, np.ndarray] | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self):
        for split, columns in self._splits().items():
            lengths = {name: len(column) for name, column in columns.items()}
            if len(set(lengths.values())) != 1:
                raise ConfigError(
                    f"Arrays.{split}: columns have lengths {lengths}; all must be equal."
                )

    def _splits(self) -> dict[str, Mapping[str, np.ndarray]]:
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: columns for split, columns in named.items() if columns is not None}

    def __repr__(self) -> str:  # for error messages; the data itself is long
        return f"Arrays({', '.join(self.train)})"

    def shards(self, data_dir: PathLike | None = None) -> dict[str, list[int]]:
        """See `SplitSource.shards`."""
        return {
            split: [len(next(iter(columns.values())))] for split, columns in self._splits().items()
        }

    def open_split(self, name: str, data_dir: PathLike | None = None) -> Dataset:
        """See `SplitSource.open_split`."""
        columns = self._splits()[name]
        return ArrayDataset(
            {key: narrowed(np.asarray(column), key) for key, column in columns.items()},
            self.classes,
        )
