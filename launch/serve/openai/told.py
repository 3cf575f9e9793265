"""What is said of texts, in pieces as they come or whole, in the two forms of the protocol."""

import codecs
import collections
import dataclasses
import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from launch.serve.openai.asked import Asked
from launch.serve.openai.tokens import Token, Tokens
from lsm.generate import Piece

_LEAST = -9999.0  # what stands for the logarithm of 0, which JSON has not


@dataclasses.dataclass(frozen=True)
class Placed:
    """A token of a text.

    Attributes:
      token: which.
      log_probability: in nats.
      likeliest: tokens at its place, and theirs.
      offset: characters of the text before it.
    """

    token: Token
    log_probability: float
    likeliest: Sequence[tuple[Token, float]]
    offset: int


@dataclasses.dataclass(frozen=True)
class Part:
    """What is new in a text; `finish` is as in `Piece`."""

    text: str
    tokens: Sequence[Placed] = ()
    finish: str | None = None

    @property
    def says(self) -> bool:
        """Whether there is anything."""
        return bool(self.text or self.tokens or self.finish)


class Choice:
    """A text as it grows: its tokens are told with the characters that they are part of.

    Attributes:
      count: its tokens.
    """

    def __init__(self, tokens: Tokens | None, ends: Collection[int]):
        """Takes the tokens, None where they are not to be told, and those that end a text."""
        self.count = 0
        self._tokens, self._ends = tokens, ends
        self._held: collections.deque[tuple[int, Placed]] = collections.deque()
        self._begun = self._shown = self._offset = 0  # two in bytes, one in characters
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, piece: Piece) -> Part:
        """Returns what a piece brings."""
        self.count += 1
        if self._tokens is None:
            return Part(piece.text, (), piece.finish)
        ended = piece.finish == "stop" and piece.token in self._ends
        if not ended:
            self._hold(piece)
        self._shown += len(piece.text.encode())
        every = ended or piece.finish == "length"
        told = []
        while self._held and (every or self._held[0][0] < self._shown):
            told.append(self._held.popleft()[1])
        return Part(piece.text, told, piece.finish)

    def _hold(self, piece: Piece) -> None:
        token = self._tokens[piece.token]
        likeliest = [(self._tokens[number], p) for number, p in piece.likeliest]
        placed = Placed(token, piece.log_probability, likeliest, self._offset)
        self._held.append((self._begun, placed))
        self._begun += token.shown
        self._offset += len(self._characters.decode(token.octets[: token.shown]))


def joined(parts: Sequence[Part]) -> Part:
    """Returns parts as one."""
    tokens = [token for part in parts for token in part.tokens]
    return Part("".join(part.text for part in parts), tokens, parts[-1].finish)


class Form:
    """The objects of one answer."""

    def __init__(self, asked: Asked, step: int):
        """Takes what was asked for, and the updates that made the model."""
        self._asked = asked
        kind = "chatcmpl" if asked.chat else "cmpl"
        self._head = {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "object": "chat.completion" if asked.chat else "text_completion",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": f"step-{step}",
        }

    def whole(self, parts: Sequence[Part], usage: dict[str, int]) -> dict[str, Any]:
        """Returns the answer that is sent at once, of a part for each text."""
        choices = [self._choice(index, part) for index, part in enumerate(parts)]
        return self._head | {"choices": choices, "usage": usage}

    def _choice(self, index: int, part: Part) -> dict[str, Any]:
        if not self._asked.chat:
            return {"text": part.text, **self._about(index, part)}
        message = {"role": "assistant", "content": part.text, "refusal": None}
        return {"message": message, **self._about(index, part)}

    def chunk(self, index: int, part: Part) -> dict[str, Any]:
        """Returns what is sent of a part of a text."""
        about = self._about(index, part)
        if not self._asked.chat:
            return self._chunk([{"text": part.text, **about}])
        return self._chunk([{"delta": {"content": part.text} if part.text else {}, **about}])

    def first(self, index: int) -> dict[str, Any]:
        """Returns what a chat says first: who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._chunk([{"delta": delta, **self._about(index, Part(""))}])

    def last(self, usage: dict[str, int]) -> dict[str, Any]:
        """Returns the chunk that counts tokens."""
        return self._chunk([], usage)

    def _chunk(self, choices: list, usage: dict[str, int] | None = None) -> dict[str, Any]:
        named = {"object": "chat.completion.chunk"} if self._asked.chat else {}
        counted = {"usage": usage} if self._asked.usage else {}
        return self._head | named | {"choices": choices} | counted

    def _about(self, index: int, part: Part) -> dict[str, Any]:
        told = None
        if self._asked.logprobs and (part.tokens or not self._asked.stream):
            form = _of_chat if self._asked.chat else _of_completion
            told = form(part.tokens, self._asked.likeliest)
        return {"index": index, "logprobs": told, "finish_reason": part.finish}


def usage(prompt: int, written: int) -> dict[str, int]:
    """Returns numbers of tokens, of the prompts and of the texts."""
    total = prompt + written
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": total}


def _of_completion(tokens: Sequence[Placed], likeliest: int) -> dict[str, Any]:
    tops = [
        # The one that was drawn is among them.
        {x.text: _finite(p) for x, p in ((one.token, one.log_probability), *one.likeliest)}
        for one in tokens
    ]
    return {
        "tokens": [one.token.text for one in tokens],
        "token_logprobs": [_finite(one.log_probability) for one in tokens],
        "top_logprobs": tops if likeliest else None,
        "text_offset": [one.offset for one in tokens],
    }


def _of_chat(tokens: Sequence[Placed], likeliest: int) -> dict[str, Any]:
    def one(token: Token, log_probability: float) -> dict[str, Any]:
        told = {"token": token.text, "logprob": _finite(log_probability)}
        return told | {"bytes": list(token.octets)}

    content = [
        one(x.token, x.log_probability) | {"top_logprobs": [one(*top) for top in x.likeliest]}
        for x in tokens
    ]
    return {"content": content, "refusal": None}


def _finite(log_probability: float) -> float:
    return max(_LEAST, log_probability)
