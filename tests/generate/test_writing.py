"""Text from tokens as they come, and where it stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.generate import (
    GREEDY,
    Decoder,
    Drawn,
    Sampling,
    Stop,
    TextStream,
    collected,
    write,
)
from lsm.generate.writing import Writing
from lsm.models import GPT, Transformer

BYTES = "día 日本 🙂!".encode()


def stripped(ids):
    """As Llama 2's and Mistral's tokenizers decode: without the blank that a text begins with."""
    return "".join([" The", " capital", " is", " Paris", "!"][number] for number in ids)[1:]


def of_bytes(ids):
    """Each token a byte, as of byte-level tokenizers: characters of several tokens."""
    return bytes(ids).decode("utf-8", errors="replace")


def test_characters_come_when_they_are_whole():
    stream = TextStream(of_bytes)
    pieces = [stream.add(byte) for byte in BYTES]
    assert "".join(pieces) + stream.rest() == BYTES.decode()
    assert "\ufffd" not in "".join(pieces)
    assert pieces[:3] == ["d", "", "í"]


def test_a_character_that_never_ends_is_told_at_the_end():
    stream = TextStream(of_bytes)
    assert stream.add(BYTES[1]) == ""
    assert stream.rest() == "\ufffd"


def test_text_depends_on_the_token_before():
    """As of SentencePiece's: a space belongs to a word that is not the first."""

    def words(ids):
        return " ".join("ab"[number] for number in ids)

    stream = TextStream(words)
    assert [stream.add(number) for number in (0, 1, 1, 0)] == ["a", " b", " b", " a"]


def test_a_text_begins_with_the_blank_between_it_and_its_prompt():
    stream = TextStream(stripped, before=[0, 1, 2])
    assert [stream.add(number) for number in (3, 4)] == [" Paris", "!"]
    alone = TextStream(stripped)
    assert [alone.add(number) for number in (3, 4)] == ["Paris", "!"]


def test_a_character_that_the_prompt_begins_is_told_of_the_text_as_before():
    stream = TextStream(of_bytes, before=BYTES[:2])
    assert stream.add(BYTES[2]) + stream.add(BYTES[3]) + stream.rest() == "\ufffda"


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["STOP"], "a STO STOP b", "a STO "),
        (["b c", "c"], "a b c", "a "),
        (["xx"], "axbx", "axbx"),
        (["\n\n"], "a\n", "a\n"),
        ([], "abc", "abc"),
    ],
)
def test_a_stop_string_never_shows(stops, text, expected):
    """Not even a part of it, which comes before one knows; at the end that part is text."""
    stream, pieces = TextStream(of_bytes, stops), []
    for byte in text.encode():
        pieces.append(stream.add(byte))
        assert expected.startswith("".join(pieces))
        if stream.stopped:
            break
    assert "".join(pieces) + stream.rest() == expected
    assert stream.stopped == (expected != text)


class Counting:
    """A decoder that counts on from the last token of each prompt, modulo 256."""

    context, vocabulary = None, 256

    def __init__(self, context=None):
        self.context, self.starts = context, []

    def start(self, prompts, longest, draws, number=0, forgotten=()):
        self.starts.append(([len(prompt) for prompt in prompts], longest, number))
        assert self.context is None or max(map(len, prompts)) + longest <= self.context
        return None, self._after(np.array([prompt[-1] for prompt in prompts]))

    def step(self, state, drawn):
        return None, self._after(np.array(drawn.token_B))

    def _after(self, token_B):
        return Drawn(jnp.asarray((token_B + 1) % 256), jnp.zeros(len(token_B)))


def test_each_row_ends_for_itself():
    stop = Stop(longest=6, tokens={103}, strings=("k",))
    rows = [np.array([ord(c)]) for c in "aei"]
    texts = collected(write(Counting(), rows, of_bytes, stop), 3)
    assert [text.text for text in texts] == ["bcdef", "f", "j"]
    assert [text.finish for text in texts] == ["stop", "stop", "stop"]
    assert texts[0].tokens == (98, 99, 100, 101, 102, 103)
    assert texts[1].tokens == (102, 103)
    short = collected(write(Counting(), rows, of_bytes, Stop(longest=1)), 3)
    assert [(text.text, text.finish) for text in short] == [(letter, "length") for letter in "bfj"]


def test_a_text_that_fills_the_context_goes_on_from_its_second_half():
    decoder = Counting(context=8)
    prompts = [np.arange(3), np.arange(6)]
    texts = collected(write(decoder, prompts, of_bytes, Stop(longest=9)), 2)
    assert [text.tokens for text in texts] == [tuple(range(3, 12)), tuple(range(6, 15))]
    # The row that is not full yet keeps all that it has.
    assert decoder.starts == [([3, 6], 2, 0), ([5, 4], 3, 2), ([4, 7], 1, 5), ([5, 4], 3, 6)]


def test_a_stop_string_in_what_was_held_back_stops():
    # The last token begins a character, so that "END" is not released before the text ends.
    text = Writing(
        lambda ids: b"".join(ids).decode("utf-8", "replace"), Stop(longest=2, strings=("END",))
    )
    text.add(b"Hi ", 0.0)
    last = text.add(b"END\xe2", 0.0)
    assert (last.text, last.finish) == ("", "stop")


def test_what_is_forgotten_was_seen():
    model = GPT(vocabulary=40, context=16, transformer=Transformer(layers=1, heads=2, width=8))
    decoder = Decoder(model, model.init(jax.random.key(0), jnp.zeros((1, 4), int)))
    ways = [Sampling(temperature=0, repetition_penalty=1e6)]
    given = ([np.array([1, 2])], lambda ids: "".join(map(chr, ids)))
    (text,) = collected(write(decoder, *given, Stop(longest=38), ways), 1)
    assert {1, 2, *text.tokens} == set(range(40))


def test_a_real_model_writes_past_its_context():
    model = GPT(vocabulary=20, context=16, transformer=Transformer(layers=1, heads=2, width=8))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4), int))
    decoder = Decoder(model, variables)
    ways = [GREEDY, Sampling(temperature=3.0)]
    given = ([np.array([1, 2]), np.array([3])], lambda ids: "".join(map(chr, ids)))
    first, second = (collected(write(decoder, *given, Stop(longest=40), ways), 2) for _ in range(2))
    assert first == second
    assert [len(text.tokens) for text in first] == [40, 40]
    # Draws go on, they do not begin again with each context.
    assert first[1].tokens[:8] != first[1].tokens[15:23]


@pytest.mark.parametrize(
    ("prompts", "line"),
    [
        ([np.zeros(0, int)], "prompt: number 1 has no token; one is needed"),
        ([np.ones(2), np.ones(8)], "prompt: number 2 has 8 tokens; the model's context is 8"),
        ([np.array([3, 256])], "prompt: ids 3 to 256 given; allowed: 0 to 255"),
        ([np.array([-1, 2])], "prompt: ids -1 to 2 given; allowed: 0 to 255"),
    ],
)
def test_a_prompt_that_cannot_be_is_one_line(prompts, line):
    with pytest.raises(ConfigError, match=line):
        write(Counting(context=8), prompts, of_bytes)


def test_each_prompt_has_one_sampling_and_one_seed():
    for changes in ({"sampling": [Sampling()]}, {"seeds": [0, 1, 2]}):
        (name, given), *_ = changes.items()
        with pytest.raises(ConfigError, match=f"^{name}: {len(given)} given for 2 prompts"):
            write(Counting(), [np.ones(1), np.ones(1)], of_bytes, **changes)


def test_stops_that_cannot_be_are_one_line():
    for strings in ("abc", ["a", ""]):
        with pytest.raises(ConfigError, match="^stop: .* strings that are not empty needed"):
            Stop(strings=strings)
    with pytest.raises(ConfigError, match="Stop.longest: 0 given"):
        Stop(longest=0)
