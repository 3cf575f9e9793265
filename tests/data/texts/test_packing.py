import numpy as np

from lsm.data.texts.encoder import Ragged
from lsm.data.texts.packing import packed


def first_fit(lengths, room):
    """The textbook's: look at every row."""
    rows, left = [], []
    for length in lengths:
        at = next((i for i, free in enumerate(left) if free >= length), len(left))
        if at == len(left):
            left.append(room)
        left[at] -= length
        rows.append(at)
    return rows


def test_documents_are_packed_first_fit_in_their_order():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 17, 300)
    documents = [np.full(n, i) for i, n in enumerate(lengths)]
    rows, segments = packed(Ragged.of(documents, np.int32), 16)
    kept = np.flatnonzero(lengths)
    expected = np.array(first_fit(lengths[kept].tolist(), 16))
    for row in range(expected.max() + 1):
        inside = kept[expected == row]
        ids = rows.padded(np.array([row]), 16, -1, np.int32)[0]
        numbers = segments.padded(np.array([row]), 16, 0, np.int32)[0]
        wanted = np.concatenate([documents[i] for i in inside])
        np.testing.assert_array_equal(ids[: len(wanted)], wanted)
        counted = np.repeat(np.arange(1, len(inside) + 1), lengths[inside])
        np.testing.assert_array_equal(numbers[: len(counted)], counted)
        assert (numbers[len(counted) :] == 0).all()
    assert len(rows.offsets) == expected.max() + 2


def test_no_documents_make_no_rows():
    rows, segments = packed(Ragged.of([np.zeros(0, int)], np.int32), 16)
    assert rows.offsets.tolist() == segments.offsets.tolist() == [0]
