"""What tasks of texts share: columns of tokens as a model reads them."""

import numpy as np

from lsm.errors import DataError
from lsm.models.sequences import Sequences
from lsm.tasks.base import Batch, check_labels, column

LENGTH, TYPES, SEGMENTS = "_length", "_types", "_segments"
"""A column of tokens NAME (B, T) has its lengths in NAME_length (B,), where a text is made of two,
which of them a token is of in NAME_types (B, T), and where texts that have nothing to do with each
other are in a row, which of them in NAME_segments (B, T), from 1, with 0 for padding."""


def sequences(batch: Batch, name: str, field: str = "task.tokens") -> Sequences:
    """Returns a column of tokens with its lengths, and its types where there are any.

    Raises:
      DataError: there is no such column, or none of its lengths.
    """
    tokens_BxT, lengths_B = (column(batch, of, field) for of in (name, name + LENGTH))
    return Sequences(tokens_BxT, lengths_B, batch.get(name + TYPES))


def check_sequences(
    batch: Batch, name: str, vocabulary: int | None, field: str = "task.tokens"
) -> None:
    """Raises DataError for missing columns, ids outside a vocabulary, or lengths that are none."""
    tokens_BxT, lengths_B = sequences(batch, name, field)[:2]
    check_labels(np.asarray(tokens_BxT), vocabulary, field)
    low, high, room = lengths_B.min(), lengths_B.max(), tokens_BxT.shape[1]
    if low < 0 or high > room:
        raise DataError(
            f"{field}: a length of {low if low < 0 else high} in column {name + LENGTH!r}, where "
            f"{name!r} has room for {room}."
        )
