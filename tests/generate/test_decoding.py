"""Tokens after prompts: as without a cache, beside others, on a mesh; nothing is copied."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.generate import GREEDY, Decoder, Draws, Sampling, decoding
from lsm.mesh import Mesh, make_mesh, shard
from lsm.models import GPT, Transformer
from lsm.models.experts import Experts

V = 31
SIZES = {"layers": 2, "heads": 4, "width": 16}
MODELS = {
    "gpt2": Transformer(**SIZES, bias=True),
    "llama": Transformer(**SIZES, kv_heads=2, theta=1e4, norm="rms", mlp="swiglu"),
    "gemma": Transformer(
        **SIZES, theta=1e4, window=3, global_every=2, global_theta=1e5, norm="rms", mlp="geglu"
    ),
    "experts": Transformer(**SIZES, theta=1e4, experts=Experts(count=4, top_k=2)),
}
PROMPTS = [np.random.default_rng(n).integers(0, V, n) for n in (3, 9, 5)]


@functools.cache
def made(name):
    model = GPT(vocabulary=V, context=64, transformer=MODELS[name])
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4), int))
    # Larger than they start, so that logits differ, and so do tokens.
    return model, jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, dict(variables))


@functools.cache
def decoder(name):
    return Decoder(*made(name))


def written(decoder, prompts, count, draws=None):
    draws = draws or Draws.of([GREEDY] * len(prompts), [0] * len(prompts))
    state, drawn = decoder.start(prompts, count, draws)
    found = [drawn]
    for _ in range(count - 1):
        state, drawn = decoder.step(state, jax.tree.map(jnp.copy, drawn))
        found.append(drawn)
    tokens, log_p = (np.stack(x, 1)[: len(prompts)] for x in zip(*found, strict=True))
    return tokens, log_p


@functools.cache
def uncached(name, count=8):
    """Token by token, each from the whole text."""
    model, variables = made(name)
    apply, rows, log_p = jax.jit(model.apply), [], []
    for prompt in PROMPTS:
        text, row = np.zeros((1, 32), int), []
        text[0, : len(prompt)] = prompt
        for end in range(len(prompt), len(prompt) + count):
            logits = jax.nn.log_softmax(apply(variables, text)[0, end - 1])
            text[0, end] = logits.argmax()
            row.append(float(logits.max()))
        rows.append(text[0, len(prompt) : len(prompt) + count])
        log_p.append(row)
    return np.array(rows), np.array(log_p)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_without_a_cache(name):
    """Prompts of different lengths together, the longest in three chunks."""
    tokens, log_p = written(decoder(name), PROMPTS, 8)
    expected, expected_log_p = uncached(name)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(log_p, expected_log_p, atol=1e-5)
    assert len(np.unique(tokens)) > 3


def test_long_prompts_go_in_chunks(monkeypatch):
    whole = written(decoder("gemma"), PROMPTS, 8)
    monkeypatch.setattr(decoding, "_CHUNK", 4)
    monkeypatch.setattr(decoding, "_LEAST", 2)
    tokens, log_p = written(decoder("gemma"), PROMPTS, 8)
    np.testing.assert_array_equal(tokens, whole[0])
    np.testing.assert_allclose(log_p, whole[1], atol=1e-5)


def test_rows_do_not_depend_on_each_other():
    draws = Draws.of([Sampling()] * 3, [4, 5, 6])
    together, _ = written(decoder("llama"), PROMPTS, 8, draws)
    for row in range(3):
        own = Draws.of([Sampling()], [4 + row])
        alone, _ = written(decoder("llama"), PROMPTS[row : row + 1], 8, own)
        np.testing.assert_array_equal(alone[0], together[row])


def test_a_mesh_writes_the_same():
    model, variables = made("llama")
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2), jax.devices())
    placed = jax.device_put(variables, shard(variables, mesh, model.layout.rules))
    laid = Decoder(model, placed, mesh)
    tokens, log_p = written(laid, PROMPTS, 8)  # three rows on four devices
    np.testing.assert_array_equal(tokens, uncached("llama")[0])
    np.testing.assert_allclose(log_p, uncached("llama")[1], atol=1e-5)


def test_programs_are_few():
    """One for each power of two of room, whatever the prompts' lengths."""
    model, variables = made("llama")
    fresh = Decoder(model, variables)
    for length in (1, 2, 7, 20):
        written(fresh, [np.ones(length, int)], 4)
    assert fresh._step._cache_size() == fresh._extend._cache_size() == 1
    written(fresh, [np.ones(40, int)], 4)
    assert fresh._step._cache_size() == 2


@pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="XLA of jax 0.10 drops the barrier on a CPU, and copies"
)
def test_a_step_copies_no_cache():
    one = decoder("llama")
    given = one.start(PROMPTS[:1], 8, Draws.of([GREEDY], [0]))
    compiled = one._step.lower(one.variables, *given).compile()
    text = compiled.as_text()
    cache = given[0].cache[0]
    shapes = {",".join(map(str, x.shape)) for x in (cache.k_BxGxKxS, cache.v_BxGxSxK)}
    flat = {shape.removeprefix("1,") for shape in shapes}
    copied = re.findall(r"f32\[([\d,]+)\]\S* (?:copy|transpose|concatenate)\(", text)
    fused = re.findall(r"f32\[([\d,]+)\]\S* fusion\(.*(?:copy|transpose)\w*fusion", text)
    assert not {*copied, *fused} & (shapes | flat)
    # Every cache is written where it is.
    aliased = re.search(r"input_output_alias=\{(.*?)\}, entry", text, re.S).group(1)
    assert aliased.count("alias") >= 2 * len(given[0].cache)


def test_more_than_the_context_is_one_line():
    """A cache that overflows would write over its last positions without a word."""
    with pytest.raises(ConfigError, match="9 tokens given and 56 to come, .* context is 64"):
        written(decoder("llama"), PROMPTS, 56)


def test_a_step_reads_parameters_that_are_apart():
    """Cut out of the stack at every token, each would be read twice."""
    held = decoder("llama").variables["params"]["blocks"]
    assert isinstance(held, tuple) and len(held) == SIZES["layers"]


def test_experts_drop_no_token_of_a_text_whoever_is_beside_it():
    """Of a padded prompt they would have other places than of it alone."""
    model, variables = made("experts")
    experts = Experts(count=4, top_k=2, capacity=0.5)
    blocks = dataclasses.replace(model.transformer, experts=experts)
    tight = Decoder(dataclasses.replace(model, transformer=blocks), variables)
    expected, _ = written(decoder("experts"), PROMPTS, 4)
    np.testing.assert_array_equal(written(tight, PROMPTS, 4)[0], expected)
    for prompt, row in zip(PROMPTS, expected, strict=True):
        np.testing.assert_array_equal(written(tight, [prompt], 4)[0][0], row)


def test_a_cache_of_texts_of_different_lengths_branches():
    model, variables = made("llama")
    decode = functools.partial(model.apply, variables, method="decode")
    prompts_2x4 = np.array([[1, 2, 3, 4], [5, 6, 0, 0]])
    cache = decode(prompts_2x4, model.cache(2, 16))[1].filled(jnp.array([4, 2]))
    expected, _ = decode(np.array([[7], [8]]), cache)
    parents_2x3 = jnp.zeros((2, 3), int)
    found, _ = decode(np.repeat([[7], [8]], 3, 0), cache.branched(parents_2x3))
    np.testing.assert_allclose(found, np.repeat(expected, 3, 0), rtol=1e-5, atol=1e-5)
