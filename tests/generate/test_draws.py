"""What is drawn: filters against NumPy's, frequencies against probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.generate import GREEDY, Draws, Sampling
from lsm.generate.sampling import draw, kept

V = 12
LOGITS = np.random.default_rng(0).normal(0, 2, (1, V)).astype(np.float32)
SEEN = np.zeros((1, V), bool)
SEEN[0, [2, 5, 7]] = True

KEPT, DRAW = jax.jit(kept), jax.jit(draw)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def expected(logits_V, way):
    """Probabilities (V,), by sorting and counting, as the papers say it."""
    x = np.float64(logits_V)
    penalised = np.where(x > 0, x / way.repetition_penalty, x * way.repetition_penalty)
    x = np.where(SEEN[0], penalised, x)
    if way.temperature == 0:
        return np.eye(V)[x.argmax()]
    x = x / way.temperature
    order = np.argsort(-x, kind="stable")
    keep = order[: way.top_k or V]
    p = softmax(x[keep])
    keep = keep[: 1 + np.searchsorted(p.cumsum(), way.top_p)]
    keep = [k for k in keep if softmax(x)[k] >= way.min_p * softmax(x).max()]
    p = np.zeros(V)
    p[keep] = softmax(x[keep])
    return p


WAYS = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(top_k=3),
    Sampling(top_k=100),
    Sampling(top_p=0.7),
    Sampling(top_p=1e-6),
    Sampling(min_p=0.2),
    Sampling(repetition_penalty=1.8),
    Sampling(temperature=1.5, top_k=6, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
    GREEDY,
    Sampling(temperature=0, repetition_penalty=9.0),
]


def test_filters_are_those_of_the_papers():
    """All rows at once: each is filtered in its own way."""
    logits_BxV, seen_BxV = (np.repeat(x, len(WAYS), 0) for x in (LOGITS, SEEN))
    found = KEPT(logits_BxV, seen_BxV, Draws.of(WAYS, [0] * len(WAYS)))
    for row, way in zip(found, WAYS, strict=True):
        np.testing.assert_allclose(softmax(np.float64(row)), expected(LOGITS[0], way), atol=1e-6)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[8]], ids=["plain", "all"])
def test_tokens_come_as_often_as_they_are_likely(way):
    rows = 4000
    logits_BxV, seen_BxV = (np.repeat(x, rows, 0) for x in (LOGITS, SEEN))
    draws = Draws.of([way] * rows, range(rows))
    tokens = DRAW(logits_BxV, seen_BxV, draws, np.zeros(rows, np.int32))
    p = expected(LOGITS[0], way)
    counts = np.bincount(tokens, minlength=V)
    assert (counts[p == 0] == 0).all()
    # Chi-squared with at most 11 degrees of freedom: above 31.3 once in a thousand.
    assert ((counts - rows * p) ** 2 / (rows * p + (p == 0))).sum() < 31.3


def test_a_draw_is_a_function_of_seed_and_number():
    flat = jnp.zeros((6, V))
    draws = Draws.of([Sampling()] * 6, [1, 2, 3, 1, 2**40 + 1, 9])
    number = np.array([0, 0, 0, 0, 0, 0], np.int32)
    first = np.array(DRAW(flat, flat > 0, draws, number))
    assert first[0] == first[3]
    np.testing.assert_array_equal(first, DRAW(flat, flat > 0, draws, number))
    assert len({*map(int, np.array([DRAW(flat, flat > 0, draws, number + n)[0]
                                   for n in range(20)]))}) > 5  # fmt: skip


def test_the_likeliest_is_taken_beside_rows_that_are_drawn():
    ways = [GREEDY, Sampling(temperature=100.0), GREEDY]
    logits_BxV, seen_BxV = (np.repeat(x, 3, 0) for x in (LOGITS, SEEN))
    tokens = DRAW(logits_BxV, seen_BxV, Draws.of(ways, [0, 1, 2]), np.zeros(3, np.int32))
    assert tokens[0] == tokens[2] == LOGITS[0].argmax()


def test_below_the_coldest_temperature_the_likeliest_is_taken():
    ways = [Sampling(temperature=t) for t in (1e-5, 1e-7, 1e-38, 1e-44)]
    logits_4xV = np.repeat(np.arange(V, dtype=np.float32)[None], 4, 0) + 1
    draws = Draws.of(ways, [0] * 4)
    tokens = DRAW(logits_4xV, logits_4xV < 0, draws, np.zeros(4, np.int32))
    np.testing.assert_array_equal(tokens, V - 1)


def test_a_filter_of_another_row_takes_nothing_away():
    """Probabilities before the last come to 1 in float32, and less than 1 is what it asks for."""
    logits_BxV = np.zeros((2, V), np.float32)
    logits_BxV[:, 5] = -30
    found = KEPT(logits_BxV, logits_BxV > 0, Draws.of([Sampling(), Sampling(top_k=3)], [0, 1]))
    np.testing.assert_array_equal(found[0], logits_BxV[0])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"temperature": -1}, r"Sampling.temperature: -1 given; allowed: a number in \[0, inf\)"),
        ({"top_k": 0}, "Sampling.top_k: 0 given"),
        ({"top_k": 2**31}, "Sampling.top_k: 2147483648 given"),
        ({"top_p": 0}, "Sampling.top_p: 0 given"),
        ({"min_p": 2}, "Sampling.min_p: 2 given"),
        ({"repetition_penalty": 0}, "Sampling.repetition_penalty: 0 given"),
    ],
)
def test_what_cannot_be_is_one_line(options, line):
    with pytest.raises(ConfigError, match=line):
        Sampling(**options)
