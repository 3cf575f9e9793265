"""Texts that are given as their words, each with a label."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lsm.data.values import as_text
from lsm.errors import DataError

Where = Callable[[], str]
"""Gives what names a value in an error."""


def text_or_words(value: Any, where: Where) -> str | list[str]:
    """Returns a text, or the words of one that is given as a list; see `as_text`."""
    if isinstance(value, list | tuple | np.ndarray):
        return [as_text(word, where) for word in value]
    return as_text(value, where)


def labels_of(words: str | Sequence[str], value: Any, where: Where) -> list[int]:
    """Returns the labels of words, one for each.

    Raises:
      DataError: they are no whole numbers, or more or fewer; or there are no words.
    """
    if isinstance(words, str):
        raise DataError(f"{where()} labels a text; labels are of words, in a list.")
    labels = np.asarray(value)
    if labels.ndim != 1 or (labels.dtype.kind not in "iu" and labels.size):
        raise DataError(f"{where()} holds no whole numbers, one for each word: {value!r}.")
    if len(labels) != len(words):
        raise DataError(f"{where()} has {len(labels)} labels for {len(words)} words.")
    return labels.tolist()


def by_token(labels: Sequence[int], words_T: np.ndarray) -> np.ndarray:
    """Returns each word's label at its first token, else -1.

    Args:
      labels: of each word.
      words_T: int, which word each token is of; -1 for none.

    Returns:
      (T,) int64.
    """
    first_T = (words_T >= 0) & (words_T != np.concatenate([[-1], words_T[:-1]]))
    # -1 finds what stands behind the last.
    return np.where(first_T, np.array([*labels, -1])[words_T], -1)
