"""Texts that are asked for: prompts to ids, and answers whole or as server-sent events."""

import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import StreamingResponse

from launch.serve.openai.asked import Asked, Prompt
from launch.serve.openai.errors import Wrong, told
from launch.serve.openai.tokens import Tokens
from launch.serve.openai.told import Choice, Form, Part, joined, usage
from launch.serve.refusal import Refused
from launch.serve.writers import Texts, Writer
from lsm import generate
from lsm.errors import LsmError

_CHARACTERS = 128  # for each token that there is room for: what is longer is not looked at


def ids_of(asked: Asked, writer: Writer) -> list[np.ndarray]:
    """Returns the ids (n,) of each prompt. Raises Wrong where one cannot be, or is too long."""
    field = "messages" if asked.chat else "prompt"
    try:
        return [_ids(prompt, asked, writer, field) for prompt in asked.prompts]
    except Wrong:
        raise
    except LsmError as error:
        raise Wrong(field, str(error)) from error


def _ids(prompt: Prompt, asked: Asked, writer: Writer, field: str) -> np.ndarray:
    known = writer.vocabulary
    if asked.chat and len(prompt) > writer.length:
        raise _too_long(field, f"{len(prompt)} messages are given", writer)
    if _characters(prompt) > _CHARACTERS * writer.length:
        raise _too_long(field, f"{_characters(prompt)} characters are given", writer)
    if asked.chat:
        ids = writer.codec.chat(prompt)
    elif isinstance(prompt, str):
        ids = writer.codec.encode(prompt)
    elif not all(0 <= number < known for number in prompt):
        raise Wrong(field, f"{field}: a token is none of the model's, 0 to {known - 1}.")
    else:
        ids = np.array(prompt, np.int32)
    if not len(ids):
        raise Wrong(field, f"{field}: it has no token; one is needed.")
    if len(ids) + (asked.longest or 1) > writer.length:
        given = f"{len(ids)} are given and {asked.longest or 1} to come"
        raise _too_long(field, given, writer)
    return ids


def _characters(prompt: Prompt) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(one["content"]) if isinstance(one, dict) else 1 for one in prompt)


def _too_long(field: str, given: str, writer: Writer) -> Wrong:
    line = f"{field}: the model's maximum context length is {writer.length} tokens; {given}."
    return Wrong(field, line, "context_length_exceeded")


class Answer:
    """The texts of one request, as its client is told of them."""

    def __init__(self, asked: Asked, writer: Writer, ids: Sequence[np.ndarray], request: Request):
        """Submits what is asked for. Raises Refused."""
        self._asked, self._ids, self._request = asked, ids, request
        self._form, self._codec = Form(asked, writer.step), writer.codec
        ends = writer.codec.ends_at(asked.stop)
        rows = [row for row in ids for _ in range(asked.texts)]
        seconds = max(request.state.deadline - time.monotonic(), 1e-3)
        requests = [
            generate.Request(
                prompt=row,
                stop=generate.Stop(
                    longest=asked.longest or writer.length - len(row),
                    tokens=ends,
                    strings=asked.stop,
                ),
                sampling=asked.sampling,
                seed=seed,
                likeliest=asked.likeliest,
                seconds=seconds,
            )
            for row, seed in zip(rows, asked.seeds(), strict=True)
        ]
        tokens = Tokens(writer.codec) if asked.logprobs else None
        self._choices = [Choice(tokens, ends) for _ in rows]
        self.texts: Texts = writer.submit(requests)

    async def whole(self) -> dict[str, Any]:
        """Returns the answer that is sent at once. Raises Refused."""
        parts: list[list[Part]] = [[Part(text)] for text in self._echoes()]
        async for index, piece in self.texts.pieces():
            parts[index].append(self._choices[index].add(piece))
        return self._form.whole([joined(of) for of in parts], self._usage())

    async def events(self) -> AsyncIterator[str]:
        """Yields the events of a stream; what goes wrong on the way is the last of them."""
        form = self._form
        try:
            for index, text in enumerate(self._echoes()):
                if self._asked.chat:
                    yield _event(form.first(index))
                elif text:
                    yield _event(form.chunk(index, Part(text)))
            async for index, piece in self.texts.pieces():
                part = self._choices[index].add(piece)
                if self._asked.chat and part.finish and (part.text or part.tokens):
                    # What says why a chat ends says nothing else.
                    yield _event(form.chunk(index, Part(part.text, part.tokens)))
                    part = Part("", (), part.finish)
                if part.says:
                    yield _event(form.chunk(index, part))
            if self._asked.usage:
                yield _event(form.last(self._usage()))
            yield "data: [DONE]\n\n"
        except Refused as refused:
            self._request.state.kind = refused.kind
            yield _event(told(refused))

    def _echoes(self) -> list[str]:
        """What each text begins with."""
        if not self._asked.echo:
            return [""] * len(self._choices)
        prompts = [
            prompt if isinstance(prompt, str) else self._codec.text(prompt)
            for prompt in self._asked.prompts
        ]
        return [prompt for prompt in prompts for _ in range(self._asked.texts)]

    def _usage(self) -> dict[str, int]:
        return usage(sum(map(len, self._ids)), sum(choice.count for choice in self._choices))


def _event(tree: dict[str, Any]) -> str:
    return f"data: {json.dumps(tree, ensure_ascii=False, separators=(',', ':'))}\n\n"


class Events(StreamingResponse):
    """A stream of events, whose texts are given up where it ends before they do."""

    def __init__(self, answer: Answer):
        super().__init__(
            answer.events(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._answer = answer

    async def __call__(self, scope, receive, send) -> None:
        """Sends the events."""
        try:
            async with contextlib.aclosing(self.body_iterator):
                await super().__call__(scope, receive, send)
        finally:
            if self._answer.texts.close():
                scope["state"]["kind"] = scope["state"]["kind"] or "gone"
