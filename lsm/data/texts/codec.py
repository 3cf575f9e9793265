"""Texts to ids and back, as what writes texts needs it: nothing is padded or cut."""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm.data.texts.encoder import Encoder
from lsm.data.texts.template import ASSISTANT, ChatTemplate, Message, check_messages
from lsm.errors import DataError, shortened


class Codec(abc.ABC):
    """Text to ids and back.

    Attributes:
      ends: ids that end a text.
    """

    ends: frozenset[int]

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Returns the ids (n,) int32 of a text that goes on, its begin token among them.

        Raises:
          DataError: something in it has no id.
        """

    def chat(self, messages: Sequence[Message]) -> np.ndarray:
        """Returns the ids (n,) int32 of a conversation, up to where its answer begins.

        Raises:
          DataError: there is no chat template, or it refuses the conversation.
        """
        raise DataError("prompt: messages given, but the run has kept no chat template.")

    def ends_at(self, strings: Sequence[str]) -> frozenset[int]:
        """Returns `ends`, and those of `strings` that are special tokens: these have no text."""
        del strings
        return self.ends

    @abc.abstractmethod
    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, without special tokens."""


@dataclasses.dataclass(frozen=True)
class CharacterCodec(Codec):
    """One id a character.

    Attributes:
      characters: what ids number, in order.
    """

    characters: str
    ends = frozenset()

    def encode(self, text: str) -> np.ndarray:
        """See `Codec.encode`."""
        return self.ids(text, "prompt")

    def ids(self, text: str, asked: str) -> np.ndarray:
        """Returns the ids (n,) int32 of a text; `asked` begins the line of an error.

        Raises:
          DataError: a character has no id.
        """
        unknown = [character for character in text if character not in self._numbers]
        if unknown:
            raise DataError(
                f"{asked}: character {unknown[0]!r} (U+{ord(unknown[0]):04X}) is none of the "
                f"{len(self._numbers)} that the run has learnt."
            )
        return np.array([self._numbers[character] for character in text], np.int32)

    def text(self, ids: Sequence[int]) -> str:
        """See `Codec.text`."""
        # A model may know more ids than there are characters.
        return "".join(self.characters[number : number + 1] for number in ids)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.characters)}


@dataclasses.dataclass(frozen=True, eq=False)
class TokenCodec(Codec):
    """The ids of a tokenizer.

    Attributes:
      encoder: of the run.
    """

    encoder: Encoder

    def encode(self, text: str) -> np.ndarray:
        """See `Codec.encode`."""
        return np.array([*self.encoder.begins, *self._ids(self.encoder.tokens, text)], np.int32)

    def chat(self, messages: Sequence[Message]) -> np.ndarray:
        """See `Codec.chat`; names of special tokens are those, which the template writes.

        What begins a text is the template's too: nothing is put before it.
        """
        if self._template is None:
            return super().chat(messages)
        check_messages(list(messages))
        text = self._template.render(messages, add_generation_prompt=True)
        return np.array(self._ids(self._with_special, text), np.int32)

    def text(self, ids: Sequence[int]) -> str:
        """See `Codec.text`."""
        return self.encoder.names.text(ids)

    @functools.cached_property
    def ends(self) -> frozenset[int]:  # noqa: D102
        told = self._template and self._template.tokens.get("eos_token")
        named = None if not told else self.encoder.tokens.token_to_id(told)
        found = {*self.encoder.ends[1:], *self.encoder.eos, named, self._turn_ends()}
        return frozenset(found - {None})

    def ends_at(self, strings: Sequence[str]) -> frozenset[int]:
        """See `Codec.ends_at`."""
        return self.ends | {self.encoder.tokens.token_to_id(s) for s in strings} & {
            *self.encoder.special
        }

    def _turn_ends(self) -> int | None:
        """The special token that the template has behind an answer: not always its "eos_token"."""
        if self._template is None:
            return None
        answer = {"role": ASSISTANT, "content": "-"}
        try:
            text, spans = self._template.answers([{"role": "user", "content": "-"}, answer])
        except DataError:  # it takes other conversations alone
            return None
        (begin, end), *_ = spans or [(0, 0)]
        behind = self._ids(self._with_special, text[begin:end].partition("-")[2])
        return behind[0] if behind and behind[0] in self.encoder.special else None

    @functools.cached_property
    def _template(self) -> ChatTemplate | None:
        return self.encoder.chat and ChatTemplate.from_json(self.encoder.chat)

    @functools.cached_property
    def _with_special(self) -> Any:
        tokenizer = type(self.encoder.tokens).from_str(self.encoder.tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _ids(self, tokenizer: Any, text: str) -> list[int]:
        try:
            return tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(f"prompt {shortened(repr(text))} cannot be encoded: {error}") from error


def codec_of(inputs: Any) -> Codec:
    """Returns how a run's texts become ids.

    Args:
      inputs: `lsm.data.inputs.Inputs` of the run.

    Raises:
      DataError: its tokens are made of no text.
    """
    if inputs.encoder is not None:
        return TokenCodec(inputs.encoder)
    if inputs.characters is not None:
        return CharacterCodec(inputs.characters)
    raise DataError("generate: the run has kept no tokenizer; `lsm.generate.write` takes ids.")
