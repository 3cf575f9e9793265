"""A draft that goes ahead changes how fast texts are written, not which."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.generate import (
    GREEDY,
    Decoder,
    Draws,
    Sampling,
    Speculative,
    Stop,
    collected,
    speculative,
    write,
)
from lsm.generate.sampling import kept
from lsm.models import GPT, Transformer

V = 7
PROMPT = np.array([1, 4, 2])


@functools.cache
def decoder(seed, width=16, vocabulary=V):
    blocks = Transformer(layers=1, heads=2, width=width, theta=1e4, norm="rms", mlp="swiglu")
    model = GPT(vocabulary=vocabulary, context=64, transformer=blocks)
    variables = dict(model.init(jax.random.key(seed), jnp.zeros((1, 4), int)))
    return Decoder(model, jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, variables))


def texts(decoder, way, count, seeds=(0,)):
    return [
        collected(write(decoder, [PROMPT], str, Stop(longest=count), way, [seed]), 1)[0]
        for seed in seeds
    ]


@pytest.mark.parametrize(
    "draft", [pytest.param(0, marks=pytest.mark.slow), 1], ids=["the same", "another"]
)
def test_the_likeliest_text_is_the_target_s(draft):
    """Past the context too, and with a penalty that depends on each token that is taken."""
    for way in (GREEDY, Sampling(temperature=0, repetition_penalty=1.5)):
        (plain,) = texts(decoder(0), way, 90)
        made = Speculative(decoder(0), decoder(draft, 8 if draft else 16), ahead=3)
        (found,) = texts(made, way, 40)
        assert found.tokens == plain.tokens[:40]
        np.testing.assert_allclose(found.log_probabilities, plain.log_probabilities[:40], atol=1e-4)


def test_a_perfect_draft_is_taken_whole():
    made = Speculative(decoder(0), decoder(0), ahead=3)
    state, drawn = made.start([PROMPT], 12, Draws.of([Sampling()], [5]))
    state, _ = made.step(state, drawn)
    assert len(state.pending) == 3  # of four


def test_what_is_drawn_is_as_likely_as_the_target_says():
    """One turn from the same state by 20,000 seeds, with a draft that is often wrong."""
    runs, way = 20_000, Sampling(temperature=0.3, top_p=0.99)
    made = Speculative(decoder(0), decoder(3, 8), ahead=2)
    (target, draft, last, _), _ = made.start([PROMPT], 8, Draws.of([way], [0]))
    target, draft = (jax.tree.map(jnp.array, x) for x in (target, draft))
    models = [functools.partial(speculative.decoded, d.model) for d in (made.target, made.draft)]
    variables = made.target.variables, made.draft.variables

    def turn(seed):
        draws = target.draws._replace(seed_B=seed[None])
        state = dataclasses.replace(target, draws=draws)
        _, _, tokens_N, _, count = speculative._turn(*models, 2, *variables, state, draft, last)
        return tokens_N, count

    tokens_RxN, count_R = jax.jit(jax.vmap(turn))(jnp.arange(runs, dtype=jnp.uint32))

    def expected(text):
        model = made.target.model
        logits, _ = models[0](variables[0], np.array([text]), model.cache(1, len(text)))
        return np.array(jax.nn.softmax(kept(logits[:, -1], target.seen_BxV, target.draws)))[0]

    def differs(tokens, p):
        """Chi-squared over its degrees of freedom."""
        counts, p = np.bincount(tokens, minlength=V), p * len(tokens)
        assert (counts[p < 1e-6] == 0).all()
        some = p > 5
        return ((counts - p)[some] ** 2 / p[some]).sum() / (some.sum() - 1)

    text = [*PROMPT, int(last[0])]
    first_R, few_R = np.array(tokens_RxN[:, 0]), np.array(count_R)
    assert (few_R == 1).mean() > 0.1 and (few_R > 1).mean() > 0.2
    assert differs(first_R, expected(text)) < 4
    # And what comes behind the commonest of those that were accepted.
    common = np.bincount(first_R[few_R > 1]).argmax()
    second = np.array(tokens_RxN[:, 1])[(few_R > 1) & (first_R == common)]
    assert differs(second, expected([*text, common])) < 4


def test_what_does_not_fit_is_one_line():
    with pytest.raises(ConfigError, match="draft: its vocabulary has 9 tokens, the target's 7"):
        Speculative(decoder(0), decoder(0, vocabulary=9))
    with pytest.raises(ConfigError, match="Speculative.ahead: 0 given"):
        Speculative(decoder(0), decoder(1), ahead=0)
    with pytest.raises(ConfigError, match="2 texts given; one at a time is written"):
        Speculative(decoder(0), decoder(1)).start([PROMPT] * 2, 4, Draws.of([GREEDY] * 2, [0, 0]))
