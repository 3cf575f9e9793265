"""Classes of tokens, and spans: losses and predictions against NumPy's, by hand."""

import functools

import jax
import numpy as np
import pytest

from lsm.errors import DataError
from lsm.models import TokenClassifier, families
from lsm.tasks import Spans, TokenClassification

ENCODER = families.bert_base(
    vocabulary=30, context=16, layers=1, heads=2, width=8, hidden=16, dropout=0.0
)
TAGS = TokenClassification(model=TokenClassifier(ENCODER, outputs=3))
SPANS = Spans(model=TokenClassifier(ENCODER), longest=3)
LENGTHS = np.array([6, 4], np.int32)
REAL = np.arange(6) < LENGTHS[:, None]


def texts(**more):
    tokens = np.random.default_rng(0).integers(0, 30, (2, 6)).astype(np.int32)
    return {"tokens": tokens, "tokens_length": LENGTHS} | more


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


LABELS = np.array([[-1, 0, 2, -1, 1, -1], [-1, 2, 1, -1, 0, 0]], np.int32)  # two 0s in the padding


@functools.cache
def tags():
    """Columns; logits, figures, gradients and predictions of them, by one compilation."""
    columns = texts(label=LABELS, weight=np.array([1, 3], np.float32))

    @jax.jit
    def run(columns):
        params, _ = TAGS.init(jax.random.key(0), columns)
        logits = TAGS.model.apply({"params": params}, TAGS.inputs(columns))
        grads, _ = jax.grad(TAGS.loss, has_aux=True)(params, {}, columns, {})
        return (
            logits,
            TAGS.evaluate(params, {}, columns),
            grads,
            TAGS.predict(params, {}, columns),
        )

    return columns, *run(columns)


def test_labels_below_0_and_padding_do_not_count():
    columns, logits, figures, grads, _ = tags()
    counts = (LABELS >= 0) & REAL
    assert counts.sum() == 5
    picked = np.take_along_axis(log_softmax(logits), np.maximum(LABELS, 0)[..., None], 2)[..., 0]
    weights = counts * columns["weight"][:, None]
    np.testing.assert_allclose(figures["loss"].sum, -(picked * weights).sum(), rtol=1e-5)
    assert figures["loss"].weight == 3 * 1 + 2 * 3 == figures["accuracy"].weight
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_padding_has_no_label():
    *_, predicted = tags()
    said = np.asarray(predicted["label"])
    assert (said[~REAL] == -1).all() and (said[REAL] >= 0).all()


@jax.jit
def measured(logits, columns):
    return SPANS.metrics(logits, columns, False, 0)


def test_a_span_s_loss_is_of_what_is_real():
    random = np.random.default_rng(1)
    logits = random.normal(size=(2, 6, 2)).astype(np.float32)
    logits[~REAL] = 50.0  # padding would take all of the sum
    columns = texts(start=np.array([2, 1]), end=np.array([4, 1]))
    figures = measured(logits, columns)
    expected = 0.0
    for row, n in enumerate(LENGTHS):
        for side, name in enumerate(("start", "end")):
            expected -= log_softmax(logits[row, :n, side])[columns[name][row]] / 2
    np.testing.assert_allclose(figures["loss"].sum, expected, rtol=1e-5)


@pytest.mark.parametrize("pair", [False, True])
def test_the_best_span_is_that_of_a_search(pair):
    random, rows, t = np.random.default_rng(2), 50, 6
    logits = random.normal(size=(rows, t, 2)).astype(np.float32)
    lengths = random.integers(1, t + 1, rows)
    types = np.tile(np.arange(t) >= 3, (rows, 1)).astype(np.int32)
    columns = {"tokens": np.zeros((rows, t), np.int32), "tokens_length": lengths}
    columns |= {"tokens_types": types} if pair else {}
    said = jax.jit(SPANS.predictions)(logits, columns)
    for row, n in enumerate(lengths):
        start, end = (log_softmax(logits[row, :n, side]) for side in (0, 1))
        spans = {(0, 0): start[0] + end[0]}
        for i in range(3 if pair else 1, n):
            for j in range(i, min(i + 3, n)):
                spans[i, j] = start[i] + end[j]
        best = max(spans, key=spans.get)
        assert (int(said["start"][row]), int(said["end"][row])) == best
        np.testing.assert_allclose(said["score"][row], spans[best], atol=1e-5)


def test_exact_match_and_f1_by_hand():
    logits = np.zeros((3, 6, 2), np.float32)
    for row, (start, end) in enumerate([(2, 4), (1, 3), (0, 0)]):
        logits[row, start, 0] = logits[row, end, 1] = 20
    columns = {
        "tokens": np.zeros((3, 6), np.int32),
        "tokens_length": np.full(3, 6),
        "start": np.array([2, 2, 0]),
        "end": np.array([4, 5, 0]),
    }
    figures = measured(logits, columns)
    # (1, 3) and (2, 5) share 2 tokens: 2 x 2 / (3 + 4).
    assert figures["exact_match"].sum == 2
    np.testing.assert_allclose(figures["f1"].sum, 1 + 4 / 7 + 1, rtol=1e-6)


@pytest.mark.parametrize(("start", "end"), [(4, 5), (3, 2), (-1, 1)])
def test_answers_outside_their_texts(start, end):
    with pytest.raises(DataError, match=rf"an answer from {start} to {end} in a text of 4 tokens"):
        SPANS.check(texts(start=np.array([1, start]), end=np.array([2, end])))


def test_labels_that_fit_nothing():
    with pytest.raises(DataError, match="a label of 3 where the model has 3"):
        TAGS.check(texts(label=LABELS + 1))
    with pytest.raises(DataError, match=r"labels \(2,\) for tokens \(2, 6\)"):
        TAGS.check(texts(label=np.zeros(2, int)))
    TAGS.check(texts(label=np.where(REAL, LABELS, 99)))  # padding may hold anything
