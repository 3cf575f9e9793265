"""Columns of tokens as a model reads them, and classification of texts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lsm.errors import DataError
from lsm.models.sequences import Sequences
from lsm.tasks.base import Batch, Task
from lsm.tasks.columns import check_labels, column
from lsm.tasks.labels import Labelled

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


def row_weights(batch: Batch) -> jax.Array:
    """Returns the column "weight" float32 as weights (B, 1) of rows, or (B, T); 1 without it."""
    weights = jnp.asarray(batch.get("weight", 1.0), jnp.float32)
    # (B,) to (B, 1): by row, not by position.
    return weights[:, None] if weights.ndim == 1 else weights


def check_sequences(
    batch: Batch,
    name: str,
    vocabulary: int | None,
    field: str = "task.tokens",
    types: int | None = None,
) -> None:
    """Raises DataError for missing columns, ids outside a vocabulary, or lengths that are none.

    Also for types that are not below `types`, where that is given.
    """
    tokens_BxT, lengths_B, types_BxT = sequences(batch, name, field)
    check_labels(np.asarray(tokens_BxT), vocabulary, field)
    low, high, room = lengths_B.min(), lengths_B.max(), tokens_BxT.shape[1]
    if low < 0 or high > room:
        raise DataError(
            f"{field}: a length of {low if low < 0 else high} in column {name + LENGTH!r}, where "
            f"{name!r} has room for {room}."
        )
    if types is not None and types_BxT is not None and types_BxT.max(initial=0) >= types:
        raise DataError(
            f"{field}: a type of {types_BxT.max()} in column {name + TYPES!r}, where the model has "
            f"{types}; types are 0 to {types - 1}."
        )


def _check(task: "OfTokens | TextClassification", batch: Batch) -> None:
    vocabulary, types = (getattr(task.model, name, None) for name in ("vocabulary", "types"))
    check_sequences(batch, task.tokens, vocabulary, types=types)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfTokens(Task):
    """A task whose model reads texts and says something of each token.

    Attributes:
      tokens: column with the texts, or with pairs of them.
    """

    tokens: str = "tokens"

    def inputs(self, batch: Batch) -> Sequences:
        """Returns the texts."""
        return sequences(batch, self.tokens)

    def check(self, batch: Batch) -> None:
        """Raises DataError for missing columns, ids or lengths that cannot be."""
        _check(self, batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextClassification(Labelled):
    """Softmax cross-entropy, or the logistic loss, on the logits of texts.

    The model is called with `lsm.models.Sequences`.

    Attributes:
      tokens: column with the texts, or with pairs of them.
    """

    tokens: str = "tokens"

    def inputs(self, batch: Batch) -> Sequences:
        """Returns the texts."""
        return sequences(batch, self.tokens)

    def check(self, batch: Batch) -> None:
        """Raises DataError for missing columns, ids, lengths or labels that cannot be."""
        _check(self, batch)
        super().check(batch)
