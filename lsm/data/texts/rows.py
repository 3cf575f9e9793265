"""Encoded texts as examples: kept side by side without padding, and padded when they are taken."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsm.data.dataset import Columns, Dataset, Derived, Read, Spec
from lsm.data.texts.encoder import LENGTH, Encoder, Ragged

_SOME = 1024  # examples padded at a time, of all
_FITS = 2**28  # bytes of padded columns that may be made at once

BYTES = "_bytes"
"""The text itself of a column NAME of the source: NAME_bytes, UTF-8."""


class TextRows(Derived):
    """The examples from `start` up to `stop` of an encoded split."""

    def __init__(
        self,
        dataset: Dataset,
        encoder: Encoder,
        columns: Mapping[str, tuple[Ragged, int, Any]],
        others: Columns,
        digest: str,
        rows: range | None = None,
    ):
        """Takes what was encoded.

        Args:
          dataset: it was encoded from.
          encoder: and how.
          columns: rows, padding and dtype of each column (N, T).
          others: columns (N, ...) that are as they were.
          digest: of the texts.
          rows: the examples; None is all.
        """
        super().__init__(dataset)
        self._encoder, self._columns, self._others = encoder, columns, others
        self._digest, self._texts = digest, list(encoder.columns)
        self._whole = len(columns[self._texts[0]][0].offsets) - 1
        self._rows = range(self._whole) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    encoder = property(lambda self: self._encoder)

    @property
    def vocabulary_size(self) -> int:
        """See `Dataset.vocabulary_size`."""
        return len(self._encoder.names)

    @property
    def spec(self) -> Spec:
        """See `Dataset.spec`."""
        spec = {
            name: jax.ShapeDtypeStruct((self._width(name),), dtype)
            for name, (_, _, dtype) in self._columns.items()
        }
        spec |= {name + LENGTH: jax.ShapeDtypeStruct((), np.int32) for name in self._texts}
        others = self._others.items()
        return spec | {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in others}

    def take(self, indices: np.ndarray) -> Columns:
        """See `Dataset.take`."""
        rows = np.asarray(indices) + self._rows.start
        batch = {
            name: ragged.padded(rows, self._width(name), fill, dtype)
            for name, (ragged, fill, dtype) in self._columns.items()
        }
        for name in self._texts:
            batch[name + LENGTH] = self._columns[name][0].lengths(rows).astype(np.int32)
        return batch | {name: x[rows] for name, x in self._others.items()}

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """See `Dataset.lengths`."""
        rows = np.asarray(indices) + self._rows.start
        return np.max([self._columns[name][0].lengths(rows) for name in self._texts], axis=0)

    def column(self, name: str) -> np.ndarray:
        """See `Dataset.column`."""
        known = self._others.get(name)
        return super().column(name) if known is None else known[self._rows.start : self._rows.stop]

    def where(self, number: int) -> str:
        """See `Dataset.where`."""
        number += self._rows.start
        packed = self._whole != len(self._dataset)
        return f"row {number:,}" if packed else self._dataset.where(number)

    @property
    def identity(self) -> dict[str, Any]:
        """See `Dataset.identity`."""
        made = {"texts": self._digest, "tokenizer": self._encoder.sha256[:16]}
        return super().identity | made

    def held(self) -> Iterator[Columns]:
        """See `Dataset.held`."""
        for start in range(0, len(self), _SOME):
            yield self.take(np.arange(start, min(start + _SOME, len(self))))

    def resident(self) -> tuple[Columns, Read] | None:
        """See `Dataset.resident`; None where batches differ in length, or it would be large."""
        each = sum(x.dtype.itemsize * int(np.prod(x.shape)) for x in self.spec.values())
        if len(self._encoder.buckets) > 1 or each * len(self) > _FITS:
            return None
        return self.take(np.arange(len(self))), lambda columns, indices: {
            name: jnp.take(x, indices, axis=0, mode="clip") for name, x in columns.items()
        }

    def rows(self, start: int, stop: int) -> "TextRows":
        """See `Dataset.rows`."""
        whole = (self._dataset, self._encoder, self._columns, self._others, self._digest)
        return type(self)(*whole, self._rows[start:stop])

    def _width(self, name: str) -> int:
        if name.endswith(BYTES) and name not in self._texts:
            return int(np.diff(self._columns[name][0].offsets).max(initial=1))
        return self._encoder.length
