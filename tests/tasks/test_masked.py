"""Masked language modelling: what is hidden, how, and what the loss is of."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from lsm.errors import ConfigError, DataError
from lsm.models import MaskedLM, TextClassifier, families
from lsm.rng import streams
from lsm.tasks import MaskedLanguageModelling
from lsm.tasks.masked import hide

V, MASK, CLS, SEP = 100, 4, 2, 3
ENCODER = families.bert_base(
    vocabulary=V, context=64, layers=1, heads=2, width=16, hidden=32, dropout=0.0
)
TASK = MaskedLanguageModelling(model=MaskedLM(ENCODER), mask=MASK, special=(CLS, SEP))
ONES = np.ones(8, np.float32)
evaluate, words, hidden = jax.jit(TASK.evaluate), jax.jit(TASK._words), jax.jit(hide)


def batch(rows=8, t=40, **more):
    random = np.random.default_rng(0)
    lengths = random.integers(4, t + 1, rows)
    tokens = random.integers(5, V, (rows, t))
    tokens[:, 0] = CLS
    tokens[np.arange(rows), lengths - 1] = SEP
    return {"tokens": tokens.astype(np.int32), "tokens_length": lengths.astype(np.int32)} | more


def inside(columns):
    """Bool, True at what may be hidden."""
    at, lengths = np.arange(columns["tokens"].shape[1]), columns["tokens_length"][:, None]
    return (at > 0) & (at < lengths - 1)


def words_of(columns, most=3, seed=1):
    """Words of 1 to `most` tokens; -1 where nothing may be hidden."""
    may = inside(columns)
    new = np.random.default_rng(seed).integers(0, most, may.shape) == 0
    words = (new | ~may).cumsum(1)
    return np.where(may, words - words.min(1, keepdims=True), -1).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(TASK.init)(jax.random.key(0), batch())[0]


def test_as_many_as_said_are_hidden_and_no_special_ones():
    columns = batch(rows=400)
    found = np.asarray(hidden(jax.random.key(0), words(columns), 0.15))
    may = inside(columns)
    assert not (found & ~may).any()
    counts = np.maximum(np.round(0.15 * may.sum(1)), 1)
    np.testing.assert_array_equal(found.sum(1), counts)
    assert counts.max() <= math.ceil(0.15 * 40)


def test_every_token_is_hidden_equally_often():
    may = np.tile(np.arange(40), (400, 1))
    found = [hidden(key, may, 0.15) for key in jax.random.split(jax.random.key(1), 10)]
    share = np.mean(found, axis=(0, 1))
    np.testing.assert_allclose(share, 0.15, atol=4 * (0.15 * 0.85 / 4000) ** 0.5)


def test_words_are_hidden_whole():
    columns = batch(rows=400)
    given = words_of(columns)
    of_tokens = words({**columns, "tokens_words": given})
    found = np.asarray(hidden(jax.random.key(0), of_tokens, 0.15))
    for row, of in zip(found, given, strict=True):
        for word in set(of[row]):
            assert row[of == word].all()
    limit = np.maximum(np.round(0.15 * inside(columns).sum(1)), 1)
    assert (found.sum(1) <= limit).all() and found.sum() > 0.75 * limit.sum()


def test_of_a_text_of_long_words_nothing_is_hidden():
    words_1xT = np.repeat([[0, 1]], 8, axis=1)  # round(0.15 x 16) is 2
    assert not hide(jax.random.key(0), words_1xT, 0.15).any()


def test_words_of_two_texts_are_not_one():
    columns = batch(rows=1, t=10) | {"tokens_length": np.array([10])}
    apart = np.array([[-1, 0, 1, 2, -1, 0, 1, 2, 3, -1]])
    types = np.array([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1]])
    given = {**columns, "tokens_words": apart, "tokens_types": types}
    found = np.asarray(words(given))[0]
    assert len(set(found[apart[0] >= 0])) == 7
    touching = np.array([[-1, 0, 1, 2, 2, 2, 3, 4, 5, -1]])  # [SEP] left out
    found = np.asarray(words({**given, "tokens_words": touching}))[0]
    assert found[3] == found[4] != found[5]


def test_8_of_10_become_the_mask_1_any_token_and_1_stays():
    columns = batch(rows=3000)
    may = inside(columns)
    new = np.asarray(jax.jit(TASK._changed)(jax.random.key(0), columns["tokens"], may))
    np.testing.assert_array_equal(new[~may], columns["tokens"][~may])
    masks, stays = (new == MASK)[may].mean(), (new == columns["tokens"])[may].mean()
    # Any token is the mask, or the one that was there, once in V.
    assert abs(masks - (0.8 + 0.1 / V)) < 0.005 and abs(stays - (0.1 + 0.1 / V)) < 0.005


def test_the_loss_is_that_of_hidden_tokens_by_numpy(params):
    columns = batch(weight=np.array([1, 1, 0, 2, 1, 1, 0.5, 1], np.float32))
    rngs = streams(TASK.streams, 0, 3, "evaluation")
    figures = evaluate(params, {}, columns, rngs)

    @jax.jit
    def reference(params, columns, key):
        pick, change = jax.random.split(key)
        at = hide(pick, TASK._words(columns), 0.15)
        tokens = TASK._changed(change, columns["tokens"], at)
        texts = TASK.inputs(columns)._replace(tokens_BxT=tokens)
        return at, TASK.model.apply({"params": params}, texts)

    at, logits = reference(params, columns, rngs["mask"])
    logits = np.asarray(logits, np.float64)
    normaliser = np.log(np.exp(logits).sum(-1))
    loss = normaliser - np.take_along_axis(logits, columns["tokens"][..., None], 2)[..., 0]
    weights = at * columns["weight"][:, None]
    np.testing.assert_allclose(figures["loss"].sum, (loss * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(figures["loss"].weight, weights.sum(), rtol=1e-6)
    right = logits.argmax(-1) == columns["tokens"]
    np.testing.assert_allclose(figures["accuracy"].sum, (right * weights).sum(), rtol=1e-6)
    assert TASK.summary({"loss": figures["loss"]})["perplexity"] == pytest.approx(
        math.exp(figures["loss"].sum / figures["loss"].weight)
    )


def test_evaluations_hide_the_same_and_steps_do_not(params):
    def loss(number, purpose):
        rngs = streams(TASK.streams, 0, number, purpose)
        return float(evaluate(params, {}, batch(weight=ONES), rngs)["loss"].sum)

    assert loss(0, "evaluation") == loss(0, "evaluation") != loss(1, "evaluation")
    assert loss(0, "") != loss(1, "")


def test_padding_is_no_target(params):
    short = batch(t=20, weight=ONES)
    tokens = np.pad(short["tokens"], ((0, 0), (0, 20)), constant_values=50)
    rngs = streams(TASK.streams, 0, 0, "evaluation")
    weights = [
        float(evaluate(params, {}, {**short, "tokens": x}, rngs)["loss"].weight)
        for x in (short["tokens"], tokens)
    ]
    assert weights[0] == weights[1] == np.maximum(np.round(0.15 * inside(short).sum(1)), 1).sum()


def test_a_gradient_of_a_text_without_words_is_finite(params):
    columns = batch() | {"tokens_length": np.zeros(8, np.int32)}
    gradient = jax.jit(jax.grad(TASK.loss, has_aux=True))
    grads, _ = gradient(params, {}, columns, streams(TASK.streams, 0, 0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_masks_of_a_text_are_filled(params):
    columns = batch()
    columns["tokens"][:, 1] = MASK

    @jax.jit
    def both(params, columns):
        logits = TASK.model.apply({"params": params}, TASK.inputs(columns))
        return TASK.predict(params, {}, columns)["token"], logits

    said, logits = map(np.asarray, both(params, columns))
    np.testing.assert_array_equal(said[:, 1], np.argmax(logits[:, 1], -1))
    np.testing.assert_array_equal(said[:, 2:], columns["tokens"][:, 2:])
    names = [f"t{i}" for i in range(V)]
    assert TASK.named({"token": said}, names)["text"][0].startswith(f"t2 t{said[0, 1]} ")


def test_errors():
    with pytest.raises(ConfigError, match="TextClassifier has no method `features`"):
        MaskedLanguageModelling(model=TextClassifier(vocabulary=V), mask=4)
    with pytest.raises(ConfigError, match=r"task\.mask: \(100,\) given; the vocabulary has 100"):
        dataclasses.replace(TASK, mask=V).check(batch())
    with pytest.raises(DataError, match=r"'tokens_words' is \(8, 39\) for tokens \(8, 40\)"):
        TASK.check(batch(tokens_words=np.zeros((8, 39), int)))
    with pytest.raises(DataError, match="a label of 100"):
        TASK.check(batch() | {"tokens": np.full((8, 40), V)})
