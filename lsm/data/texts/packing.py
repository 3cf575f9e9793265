"""Documents next to each other in rows of one length."""

import numpy as np

from lsm.data.texts.encoder import Ragged


def packed(documents: Ragged, length: int) -> tuple[Ragged, Ragged]:
    """Returns the documents in rows of at most `length` tokens, and the segment of each token.

    First fit: a document goes into the first row that has room for it, or a new one. Segments
    count the documents of a row, from 1. Documents without a token are left out.

    Args:
      documents: none longer than `length`.
      length: tokens of a row.
    """
    lengths = np.diff(documents.offsets)
    numbers = np.flatnonzero(lengths)
    row_of = _first_fit(lengths[numbers].tolist(), length)
    order = np.argsort(row_of, kind="stable")  # by row, in each as they came
    numbers, row_of = numbers[order], row_of[order]
    rows = int(row_of.max(initial=-1)) + 1
    starts = documents.offsets[numbers]
    ids = [documents.values[a : a + n] for a, n in zip(starts, lengths[numbers], strict=True)]
    within = np.arange(len(numbers)) - np.searchsorted(row_of, row_of)
    segments = np.repeat(within + 1, lengths[numbers]).astype(np.int32)
    taken = np.bincount(row_of, weights=lengths[numbers], minlength=rows).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(taken)]).astype(np.int64)
    values = np.concatenate([documents.values[:0], *ids])
    return Ragged(values, offsets), Ragged(segments, offsets)


def _first_fit(lengths: list[int], room: int) -> np.ndarray:
    """Returns the row (n,) of each document, by a tree of the room that is left in rows."""
    leaves = 1 << max(len(lengths) - 1, 0).bit_length()
    most = [room] * (2 * leaves)  # of a node the most that a row below it has left
    found = np.zeros(len(lengths), np.int64)
    for number, length in enumerate(lengths):
        node = 1
        while node < leaves:
            node = 2 * node if most[2 * node] >= length else 2 * node + 1
        found[number] = node - leaves
        most[node] -= length
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
    return found
