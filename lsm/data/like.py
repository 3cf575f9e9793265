"""A dataset in the dtypes of another, such as those of a split that files typed otherwise."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from lsm.data.dataset import Columns, Dataset, Derived, Spec
from lsm.data.values import common


def like(dataset: Dataset, spec: Spec) -> Dataset:
    """Returns a dataset whose whole numbers are floats where those of `spec` are; else itself.

    Raises:
      DataError: these are bytes, and those floats.
    """
    floats = {
        name: common(name, one.dtype, dataset.spec[name].dtype)
        for name, one in spec.items()
        if np.issubdtype(one.dtype, np.floating)
        and name in dataset.spec
        and np.issubdtype(dataset.spec[name].dtype, np.integer)
    }
    return _Floats(dataset, floats) if floats else dataset


class _Floats(Derived):
    """Another dataset, with floats in some columns of whole numbers."""

    def __init__(self, dataset: Dataset, dtypes: Mapping[str, np.dtype]):
        super().__init__(dataset)
        self._dtypes = dtypes

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def spec(self) -> Spec:
        """See `Dataset.spec`."""
        changed = {
            name: jax.ShapeDtypeStruct(self._dataset.spec[name].shape, dtype)
            for name, dtype in self._dtypes.items()
        }
        return {**self._dataset.spec, **changed}

    def take(self, indices: np.ndarray) -> Columns:
        """See `Dataset.take`."""
        return self._cast(self._dataset.take(indices))

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """See `Dataset.lengths`."""
        return self._dataset.lengths(indices)

    def held(self) -> Iterator[Columns]:
        """See `Dataset.held`."""
        return map(self._cast, self._dataset.held())

    def evaluation(self) -> Dataset:
        """See `Dataset.evaluation`."""
        return _Floats(self._dataset.evaluation(), self._dtypes)

    def by_example(self) -> Dataset:
        """See `Dataset.by_example`."""
        return _Floats(self._dataset.by_example(), self._dtypes)

    def _cast(self, columns: Columns) -> Columns:
        return columns | {name: columns[name].astype(of) for name, of in self._dtypes.items()}
