"""What examples are that no model is likely to be meant to learn from, each told in a line."""

from collections.abc import Iterable, Iterator

import numpy as np

from lsm.data.dataset import Dataset
from lsm.data.values import first_word, not_finite
from lsm.errors import listed, shortened

_FEW = 256  # examples that tell what a column holds for the most part


def text(dataset: Dataset, column: str) -> str | None:
    """Returns that a column is text, with the first of its texts that is no number."""
    values = dataset.column(column)
    if not isinstance(values[0], str):
        return None
    at = first_word(values) or 0  # 0 too where they look like numbers, and a file has them as texts
    return f"column {column!r} is text: {dataset.where(at)} holds {shortened(values[at], 40)!r}"


def word(dataset: Dataset, column: str) -> str | None:
    """Returns which word makes a column text whose first examples are numbers for the most part."""
    some = dataset.by_example().take(np.arange(min(_FEW, len(dataset))))[column]
    if 2 * sum(first_word([value]) is None for value in some) <= len(some):
        return None  # as texts are; they are not read further
    values = dataset.column(column)
    at = first_word(values)
    return at if at is None else f"{dataset.where(at)} holds {shortened(values[at], 40)!r}"


def of_values(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Yields (column, line) for columns in memory that are infinite or NaN in some examples."""
    found, start = {}, 0
    for part in dataset.held():
        for name, rows in not_finite(part).items():
            first, count = found.get(name, (start + int(rows[0]), 0))
            found[name] = first, count + len(rows)
        start += len(next(iter(part.values())))
    for name, (first, count) in found.items():
        yield (
            name,
            f"column {name!r} is not finite in {count:,} of {start:,} examples, the first is "
            f"{dataset.where(first)}",
        )


def of_classes(columns: Iterable[str], train: Dataset, other: Dataset) -> Iterator[str]:
    """Yields a line for columns in memory with classes in `other` that `train` has none of."""
    for column in columns:
        seen, asked = _classes(train, column), _classes(other, column)
        if len(seen) and len(unseen := np.setdiff1d(asked, seen)):
            names = dict(enumerate(train.names.get(column) or train.classes or ()))
            told = listed((repr(names.get(k, k)) for k in unseen.tolist()), 3)
            yield f"column {column!r} holds {told}, which data.train has no example of"


def _classes(dataset: Dataset, column: str) -> np.ndarray:
    """The whole numbers (n,) of a column in memory, each once; none of another column."""
    parts = [part[column] for part in dataset.held() if column in part]
    whole = [np.unique(x) for x in parts if x.ndim == 1 and x.dtype.kind in "iu"]
    return np.unique(np.concatenate(whole)) if whole else np.zeros(0, np.int32)
