"""The columns of a batch: asked for by name, and checked."""

import contextlib
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from lsm.errors import DataError, listed, nearest

Batch = Mapping[str, jax.Array | np.ndarray]
"""Named arrays with a common leading batch axis. An optional float32 column "weight" weighs
examples: (B,), or (B, T) where the task has targets (B, T)."""


def column(batch: Batch, name: str, field: str) -> jax.Array | np.ndarray:
    """Returns `batch[name]`; a DataError names `field` and the columns that there are."""
    if name not in batch:
        raise DataError(
            f"{field}: the data has no column {name!r}; it has {listed(batch)}."
            + nearest(name, batch)
        )
    return batch[name]


@contextlib.contextmanager
def asking(batch: Batch, field: str) -> Iterator[None]:
    """Turns the KeyError of a column that `batch` has not into the DataError of `column`."""
    try:
        yield
    except KeyError as error:
        if isinstance(error.args[0], str):
            column(batch, error.args[0], field)
        raise


def check_numeric(values: np.ndarray, field: str) -> None:
    """Raises DataError where a column holds texts, or pictures of different sizes."""
    if values.dtype == object:
        first = values.flat[0]
        kind = "arrays" if isinstance(first, np.ndarray) else type(first).__name__
        raise DataError(
            f"{field}: the examples are {kind} of different shapes; numbers of one shape are "
            "needed (of pictures, which keep their own size, by data.source.size, or by a crop in "
            "data.augment and data.evaluate)."
        )


def check_labels(labels: np.ndarray, outputs: int | None, field: str) -> None:
    """Raises DataError where an integer label is outside the model's outputs."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{field}: labels are {labels.dtype}; integer class numbers are needed.")
    if outputs is None or not labels.size:
        return
    low, high = labels.min(), labels.max()
    if low < 0 or high >= outputs:
        raise DataError(
            f"{field}: a label of {low if low < 0 else high} where the model has {outputs} "
            f"outputs; labels must be 0 to {outputs - 1}, or the outputs more."
        )
