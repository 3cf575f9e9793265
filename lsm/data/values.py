"""Values of columns: in 32 bits, finite or not, words among numbers."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lsm.errors import DataError

_NUMBER = re.compile(r"\s*-?(\d+\.?\d*(e[-+]?\d+)?|\.\d+(e[-+]?\d+)?|nan|inf)\s*", re.IGNORECASE)
_SOME = 1 << 20  # values that are looked at together: the answer has a byte for each


def narrowed(column: np.ndarray, name: str) -> np.ndarray:
    """Returns `column` with 64-bit numbers as 32-bit ones, in which JAX computes.

    Raises:
      DataError: a number does not fit.
    """
    if column.dtype == np.float64:
        with np.errstate(over="ignore"):
            small = column.astype(np.float32)
        if (np.isinf(small) & ~np.isinf(column)).any():
            raise DataError(
                f"column {name!r} holds numbers beyond 32 bits; leave it out of columns."
            )
        return small
    if column.dtype not in (np.int64, np.uint64):
        return column
    small = np.int32 if column.dtype == np.int64 else np.uint32
    if column.size and (column.max() > np.iinfo(small).max or column.min() < np.iinfo(small).min):
        raise DataError(f"column {name!r} holds integers beyond 32 bits; leave it out of columns.")
    return column.astype(small)


def common(name: str, *dtypes: np.dtype) -> np.dtype:
    """Returns the dtype of a column that is of one in a split and of others elsewhere.

    Raises:
      DataError: bytes beside floats: pixels of 0 to 255 would be among fractions of 0 to 1.
    """
    floats = [dtype for dtype in dtypes if dtype.kind == "f"]
    found = np.result_type(*(floats or dtypes))  # of int32 and float32 NumPy would make float64
    if floats and np.uint8 in dtypes:
        raise DataError(
            f"column {name!r} is uint8 in one split and {found} in another; one kind is needed."
        )
    return found


def not_finite(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the rows (n,), ascending, whose values are not all finite, of columns with such."""
    floats = {name: x for name, x in columns.items() if x.dtype.kind == "f" and x.ndim and x.size}
    found = {name: _not_finite(x) for name, x in floats.items()}
    return {name: rows for name, rows in found.items() if len(rows)}


def _not_finite(column: np.ndarray) -> np.ndarray:
    some = max(1, _SOME * len(column) // column.size)
    parts = (column[at : at + some] for at in range(0, len(column), some))
    finite = [np.isfinite(x).reshape(len(x), -1).all(axis=1) for x in parts]
    return np.flatnonzero(~np.concatenate(finite))


def as_text(value: Any, where: Callable[[], str]) -> str:
    """Returns a text that can be encoded as UTF-8: JSON may hold halves of surrogate pairs.

    Args:
      value: str, or bytes in UTF-8.
      where: gives what names it in an error.

    Raises:
      DataError: it is no text, or not in UTF-8.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where()} is not UTF-8 text: {error.reason}.") from None
    if not isinstance(value, str):
        raise DataError(f"{where()} holds {type(value).__name__}; text is needed.")
    # Most texts are ASCII, and CPython knows that without looking.
    return str(value) if value.isascii() else value.encode("utf-8", "replace").decode()


def first_word(values: Iterable[Any]) -> int | None:
    """Returns the place of the first text that is no number; None where there is none."""
    words = (i for i, x in enumerate(values) if isinstance(x, str) and not _NUMBER.fullmatch(x))
    return next(words, None)
