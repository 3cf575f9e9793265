"""Beam search against one in plain Python, exhaustive search and greedy choice, on random tables."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.generate import Beam, beam_search
from lsm.mesh import Mesh, batch_sharding, jit, make_mesh

V, END, LONGEST = 5, 1, 4


class Prefix(NamedTuple):
    """A model's cache that is the text itself, as a number in base V + 1, and whose text it is."""

    prefix_N: jax.Array
    text_N: jax.Array

    def branched(self, parents_BxK):
        def gathered(x_N):
            x_BxM = x_N.reshape(len(parents_BxK), -1)
            return jnp.take_along_axis(x_BxM, parents_BxK, axis=1).reshape(-1)

        return Prefix(*map(gathered, self))


def tables(rows, seed=0, sharpness=1.5):
    """Logits (rows, prefixes, V) float32 of what comes after each prefix."""
    random = np.random.default_rng(seed)
    size = (rows, (V + 1) ** LONGEST, V)
    return (sharpness * random.normal(size=size)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=1)
def searched(table, beam):
    def decode(tokens_Nx1, cache):
        cache = cache._replace(prefix_N=cache.prefix_N * (V + 1) + tokens_Nx1[:, 0] + 1)
        return table[cache.text_N, cache.prefix_N][:, None], cache

    rows = len(table)
    start = Prefix(jnp.zeros(rows, jnp.int32), jnp.arange(rows))
    return beam_search(decode, table[:, 0], start, END, beam)


def log_softmax(x):
    return x - np.log(np.exp(x.astype(np.float64)).sum())


def number(text):
    return sum((token + 1) * (V + 1) ** i for i, token in enumerate(reversed(text)))


def in_python(table, beam):
    """The best (text, log P) of one row, as the docstring of `beam_search` says."""
    live, ended = [((), 0.0)], []
    for _ in range(beam.longest):
        wider = [
            ((*text, token), log_p + step)
            for text, log_p in live
            for token, step in enumerate(log_softmax(table[number(text)]))
        ]
        wider = sorted(wider, key=lambda one: -one[1])[: 2 * beam.size]
        ended += [one for one in wider[: beam.size] if one[0][-1] == END]
        live = [one for one in wider if one[0][-1] != END][: beam.size]

        def score(one):
            return one[1] / ((5 + len(one[0])) / 6) ** beam.length_penalty

        most = live[0][1] / ((5 + beam.longest) / 6) ** beam.length_penalty
        if len(ended) >= beam.size or (ended and max(map(score, ended)) >= most):
            break
    return max(ended, key=score) if ended else live[0]


def agree(found, row, expected):
    text, log_p = expected
    assert found.length_B[row] == len(text)
    assert tuple(found.tokens_BxT[row]) == text + (0,) * (LONGEST - len(text))
    assert found.log_probability_B[row] == pytest.approx(log_p, abs=1e-5)


@pytest.mark.parametrize(("size", "length_penalty"), [(2, 0.6), (3, 2.0), (7, 0.0)])
def test_search_is_that_in_plain_python(size, length_penalty):
    table = tables(40)
    beam = Beam(size=size, length_penalty=length_penalty, longest=LONGEST)
    found = searched(table, beam)
    for row in range(40):
        agree(found, row, in_python(table[row], beam))
    lengths = {*np.asarray(found.length_B).tolist()}
    assert len(lengths) > 2  # else little was tried


def test_a_beam_as_wide_as_all_texts_finds_the_best():
    table = tables(10, seed=1)
    beam = Beam(size=V**LONGEST, length_penalty=1.0, longest=LONGEST)
    found = searched(table, beam)
    others = [token for token in range(V) if token != END]
    for row in range(10):
        every = []
        for n in range(LONGEST):
            for begun in itertools.product(others, repeat=n):
                text = (*begun, END)
                steps = [log_softmax(table[row, number(text[:i])])[text[i]] for i in range(n + 1)]
                every.append((text, sum(steps)))
        best = max(every, key=lambda one: one[1] / ((5 + len(one[0])) / 6))
        agree(found, row, best)


def test_one_hypothesis_is_the_greedy_choice():
    table = tables(40, seed=2)
    found = searched(table, Beam(size=1, length_penalty=2.0, longest=LONGEST))
    for row in range(40):
        text, log_p = (), 0.0
        while len(text) < LONGEST and END not in text:
            steps = log_softmax(table[row, number(text)])
            text, log_p = (*text, int(steps.argmax())), log_p + steps.max()
        agree(found, row, (text, log_p))


def test_a_row_does_not_depend_on_the_others():
    table, beam = tables(40, seed=3), Beam(size=3, length_penalty=2.0, longest=LONGEST)
    together = searched(table, beam)
    for row in range(6):
        alone = searched(table[row : row + 1], beam)
        for one, all_ in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], all_[row])


def test_a_text_without_an_end_is_the_longest():
    table = tables(4)
    table[..., END] = -1e9
    found = searched(table, Beam(size=2, longest=3))
    assert (found.length_B == 3).all() and not found.tokens_BxT.shape[1] > 3
    assert np.isfinite(found.log_probability_B).all()


def test_the_search_ends_when_nothing_can_win():
    """Here all rows end at once; the model is asked once, for what is not needed."""
    table, asked = np.zeros((2, (V + 1) ** LONGEST, V), np.float32), []
    table[..., END] = 20

    def decode(tokens_Nx1, cache):
        jax.debug.callback(lambda: asked.append(1))
        return jnp.zeros((len(tokens_Nx1), 1, V)), cache

    start = Prefix(jnp.zeros(2, jnp.int32), jnp.arange(2))
    beam = Beam(size=3, longest=LONGEST)
    found = jax.jit(lambda logits: beam_search(decode, logits, start, END, beam))(table[:, 0])
    jax.effects_barrier()
    assert (found.length_B == 1).all() and len(asked) == 1


def test_eight_devices_are_one():
    table, beam = tables(40, seed=4), Beam(size=3, length_penalty=2.0, longest=LONGEST)
    mesh = make_mesh(Mesh(data=8))
    rows = batch_sharding(mesh)
    search = jit(
        lambda table: searched(table, beam), in_shardings=(rows,), out_shardings=rows, mesh=mesh
    )
    for found, expected in zip(search(table), searched(table, beam), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_cannot_be_is_told():
    with pytest.raises(ConfigError, match="size"):
        Beam(size=0)
    with pytest.raises(ConfigError, match="length_penalty"):
        Beam(length_penalty=-1.0)
