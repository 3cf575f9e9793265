"""Texts from a decoder: tokens to text as they come, where it stops, and what came of it."""

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Literal

import jax
import numpy as np

from lsm.checks import require
from lsm.errors import ConfigError
from lsm.generate.decoding import Decoder, Drawn
from lsm.generate.sampling import Draws, Sampling

_HALF = "\ufffd"
"""What stands for a character of which not all bytes are there yet."""
_BEFORE = 4  # tokens of the prompt that a text is decoded behind


@dataclasses.dataclass(frozen=True)
class Written:
    """A text that was written.

    Attributes:
      text: without what stopped it.
      tokens: ids, the token that ended it among them.
      log_probabilities: of each, in nats, the model's own: before temperature and filters.
      finish: "stop" where it came to its end or a stop string, "length" where it was cut.
    """

    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    finish: Literal["stop", "length"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """What one more token brought.

    Attributes:
      row: of which text, prompts x samples in order.
      text: what is new and will not change; may be empty.
      token: its id.
      log_probability: as in `Written`.
      finish: as in `Written`; None while it goes on.
      likeliest: tokens with their log-probabilities, where they were asked for, the first first.
    """

    row: int
    text: str
    token: int
    log_probability: float
    finish: Literal["stop", "length"] | None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """When a text ends.

    Attributes:
      longest: tokens at the most.
      tokens: ids that end it.
      strings: what ends it, where it appears in the text; not part of it.
    """

    longest: int = 256
    tokens: Set[int] = frozenset()
    strings: Sequence[str] = ()

    def __post_init__(self):
        require(self, longest="[1, inf)")
        if isinstance(self.strings, str) or "" in self.strings:
            raise ConfigError(f"stop: {self.strings!r} given; strings that are not empty needed.")


def check_ids(prompt: np.ndarray, vocabulary: int) -> None:
    """Raises ConfigError where an id is none of the model's: it would be read as another."""
    least, most = np.min(prompt), np.max(prompt)
    if least < 0 or most >= vocabulary:
        raise ConfigError(f"prompt: ids {least} to {most} given; allowed: 0 to {vocabulary - 1}.")


def write(
    decoder: Decoder,
    prompts: Sequence[np.ndarray],
    text: Callable[[Sequence[int]], str],
    stop: Stop = Stop(),
    sampling: Sampling | Sequence[Sampling] = Sampling(),
    seeds: Sequence[int] | None = None,
) -> Iterator[Piece]:
    """Yields what comes after prompts, a piece for each token of each row that goes on.

    What a row writes depends on its prompt, its sampling and its seed, not on the other rows (up to
    rounding). A text that fills the model's context goes on from the second half of it.

    Args:
      decoder: the model.
      prompts: ids (n,) of each row, any lengths.
      text: ids to text.
      stop: when texts end.
      sampling: how tokens are drawn; of all rows, or of each.
      seeds: of each row; None is 0, 1, ...

    Raises:
      ConfigError: a prompt is empty, not shorter than the model's context, or has other ids than
        the model; or there are not as many samplings or seeds as prompts.
    """
    context = decoder.context
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(f"prompt: number {row + 1} has no token; one is needed.")
        check_ids(prompt, decoder.vocabulary)
        if context is not None and len(prompt) >= context:
            raise ConfigError(
                f"prompt: number {row + 1} has {len(prompt)} tokens; the model's context is "
                f"{context}, and allowed is less."
            )
    ways = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    seeds = range(len(prompts)) if seeds is None else seeds
    for name, given in (("sampling", ways), ("seeds", seeds)):
        if len(given) != len(prompts):
            raise ConfigError(f"{name}: {len(given)} given for {len(prompts)} prompts.")
    return _pieces(decoder, prompts, text, stop, Draws.of(ways, seeds))


def _pieces(decoder, prompts, text, stop: Stop, draws: Draws) -> Iterator[Piece]:
    rows = {row: Writing(text, stop, prompt, row) for row, prompt in enumerate(prompts)}
    for found in _tokens(decoder, prompts, stop.longest, draws):
        token_B, log_p_B = jax.device_get(found)
        for row, writing in list(rows.items()):
            piece = writing.add(int(token_B[row]), float(log_p_B[row]))
            if piece.finish:
                del rows[row]
            yield piece
        if not rows:
            return


def _tokens(decoder: Decoder, prompts, longest: int, draws: Draws) -> Iterator[Drawn]:
    """Yields the tokens of all rows; the device is at work on the next ones by then."""
    texts, number, context = [list(prompt) for prompt in prompts], 0, decoder.context
    begins = [0] * len(texts)  # of what is still read
    while number < longest:
        turns = longest - number
        if context is not None:
            ends = [len(ids) for ids in texts]
            begins = [
                begin if end - begin < context else end - context // 2
                for begin, end in zip(begins, ends, strict=True)
            ]
            turns = min(turns, context - max(map(operator.sub, ends, begins)))
        forgotten, read = zip(
            *((ids[:at], np.array(ids[at:])) for ids, at in zip(texts, begins, strict=True)),
            strict=True,
        )
        state, drawn = decoder.start(read, turns, draws, number, forgotten)
        for turn in range(1, turns + 1):
            found = drawn
            if turn < turns:
                state, drawn = decoder.step(state, drawn)
            yield found
            if context is not None:
                for ids, token in zip(texts, np.asarray(found.token_B), strict=False):
                    ids.append(int(token))
        number += turns


def collected(pieces: Iterator[Piece], rows: int) -> list[Written]:
    """Returns the texts of rows, once all are written."""
    by_row: list[list[Piece]] = [[] for _ in range(rows)]
    for piece in pieces:
        by_row[piece.row].append(piece)
    return [
        Written(
            "".join(piece.text for piece in of),
            tuple(piece.token for piece in of),
            tuple(piece.log_probability for piece in of),
            of[-1].finish,
        )
        for of in by_row
    ]


class Writing:
    """One text as its tokens come: what each brings, and which is the last.

    Attributes:
      number: how many tokens came.
    """

    def __init__(
        self,
        text: Callable[[Sequence[int]], str],
        stop: Stop,
        prompt: Sequence[int] = (),
        row: int = 0,
    ):
        """Takes what makes text of ids, when the text ends, what it goes on from, and its row."""
        self._stream = TextStream(text, stop.strings, [int(x) for x in prompt[-_BEFORE:]])
        self._stop, self._row = stop, row
        self.number = 0

    def add(
        self, token: int, log_probability: float, likeliest: tuple[tuple[int, float], ...] = ()
    ) -> Piece:
        """Returns the piece of the next token; where it has a `finish`, there is none after it."""
        self.number += 1
        ends = token in self._stop.tokens
        new = "" if ends else self._stream.add(token)
        last = self.number == self._stop.longest
        if ends or self._stream.stopped or last:
            new += self._stream.rest()  # in which a stop string may be found
        finish = "stop" if ends or self._stream.stopped else "length" if last else None
        return Piece(
            row=self._row,
            text=new,
            token=token,
            log_probability=log_probability,
            finish=finish,
            likeliest=likeliest,
        )


class TextStream:
    """Tokens in, text out: what is given out never changes, and a stop string never shows.

    Attributes:
      stopped: whether a stop string came.
    """

    def __init__(
        self,
        text: Callable[[Sequence[int]], str],
        strings: Sequence[str] = (),
        before: Sequence[int] = (),
    ):
        """Takes what makes text of ids, strings that end it, and tokens that are out before."""
        self._text, self._strings = text, tuple(strings)
        # Some tokenizers leave out the blank that a text begins with: it begins before.
        self._tokens = [] if text(before).endswith(_HALF) else list(before)
        self._begin, self._read = 0, len(self._tokens)  # tokens whose text is behind, and out
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Returns the text that is certain with this token."""
        self._tokens.append(token)
        # A token's text depends on the ones before it (spaces, bytes of a character): those of
        # the last piece come along.
        before = self._text(self._tokens[self._begin : self._read])
        now = self._text(self._tokens[self._begin :])
        if now.endswith(_HALF) or len(now) <= len(before):
            return ""
        self._begin, self._read = self._read, len(self._tokens)
        return self._released(now[len(before) :])

    def rest(self) -> str:
        """Returns what was held back, at the end."""
        if self.stopped:
            return ""
        before = self._text(self._tokens[self._begin : self._read])
        new = self._text(self._tokens[self._begin :])[len(before) :]
        self._begin = self._read = len(self._tokens)
        released = self._released(new)
        return released if self.stopped else released + self._held

    def _released(self, new: str) -> str:
        held = self._held + new
        found = [at for at in (held.find(string) for string in self._strings) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)]
        # The longest end that could begin a stop string waits.
        most = max(map(len, self._strings), default=1) - 1
        keep = next(
            (n for n in range(min(most, len(held)), 0, -1)
             if any(string.startswith(held[-n:]) for string in self._strings)),
            0,
        )  # fmt: skip
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]
