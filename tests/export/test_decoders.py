"""Exported decoders: prefill and decode, with the cache as a value."""

import jax
import numpy as np
import pytest

from lsm.errors import ConfigError, DataError, ExportError
from lsm.export import load
from lsm.export.write import write
from lsm.generate import GREEDY
from tests.export.exports import trained

PROMPTS = ["ab", "cdefg", "hijklmnopqrst"]
IDS = [["abcdefghijklmnopqrst".index(c) for c in prompt] for prompt in PROMPTS]


@pytest.fixture(scope="module", params=["gpt", pytest.param("llama", marks=pytest.mark.slow)])
def decoder(request, tmp_path_factory):
    """A run with a decoder, and its export."""
    run, folder = trained(request.param), tmp_path_factory.mktemp(request.param) / "out"
    write(run, folder)
    return run, load(folder)


def test_the_likeliest_tokens_are_those_of_the_run(decoder):
    run, model = decoder
    expected = run.generate(PROMPTS, max_tokens=9, sampling=GREEDY)
    found = model.generate(IDS, max_tokens=9)
    assert [tuple(ids) for ids in found] == [text.tokens for text in expected]
    assert model.signature.context == 24


@pytest.mark.slow
def test_logits_are_those_of_the_whole_text(decoder):
    run, model = decoder
    tokens, lengths = np.zeros((2, 5), np.int32), np.array([2, 5], np.int32)
    tokens[0, :2], tokens[1] = IDS[0], IDS[1]
    first = model.call("prefill", {"tokens": tokens, "lengths": lengths})
    variables = {"params": run.params, **run.model_state}
    whole = jax.jit(run.experiment.task.model.apply)(variables, tokens[1:])
    np.testing.assert_allclose(first["logits"][1], whole[0, -1], atol=1e-5)
    cache = {name: x for name, x in first.items() if name.startswith("cache/")}
    next_ = model.call("decode", {"token": first["token"], **cache})
    np.testing.assert_array_equal(next_["cache/length"], lengths + 1)
    assert cache["cache/0/0"].is_deleted()  # its memory is the new one's


def test_a_token_that_ends_a_text_is_its_last(decoder, monkeypatch):
    _, model = decoder
    free, *_ = model.generate(IDS, max_tokens=9)
    monkeypatch.setitem(vars(model.signature), "ends", (int(free[2]),))
    ended, *_ = model.generate(IDS, max_tokens=9)
    where = free.tolist().index(free[2])
    np.testing.assert_array_equal(ended, free[: where + 1])
    np.testing.assert_array_equal(model.generate(IDS, max_tokens=9, stop=False)[0], free)


@pytest.mark.parametrize(
    ("prompts", "most", "told"),
    [
        ([[1] * 20], 5, "20 tokens given and 5 to come, where the context is 24"),
        ([[]], 5, r"a prompt of float64 \(0,\) given; ids \(n,\) are needed"),
        ([], 5, "0 prompts, max_tokens=5; at least one of each"),
        ([[1.5]], 5, "a prompt of float64"),
        ([[1, 99]], 5, "ids from 1 to 99 given; the model knows 0 to 19"),
        ([[2**32 + 5]], 5, "ids from 4294967301 to 4294967301 given; the model knows 0 to 19"),
        ([[[1], [1, 2]]], 5, "a prompt is no ids: "),
    ],
)
def test_what_cannot_go_on_is_told_in_one_line(decoder, prompts, most, told):
    with pytest.raises(DataError, match=told):
        decoder[1].generate(prompts, max_tokens=most)


def test_the_context_is_chosen(decoder, tmp_path):
    run, _ = decoder
    with pytest.raises(ConfigError, match="--context: 99 given; allowed: 2 to 24"):
        write(run, tmp_path / "out", context=99)
    with pytest.raises(ExportError, match="the model writes no texts"):
        run = trained("mlp")
        write(run, tmp_path / "out")
        load(tmp_path / "out").generate(IDS)
