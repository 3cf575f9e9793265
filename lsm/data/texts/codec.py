"""Texts to ids and back, as what writes texts needs it: nothing is padded or cut."""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm.data.texts.encoder import Encoder
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
        unknown = [character for character in text if character not in self._ids]
        if unknown:
            raise DataError(
                f"prompt: character {unknown[0]!r} (U+{ord(unknown[0]):04X}) is none of the "
                f"{len(self._ids)} that the run has learnt."
            )
        return np.array([self._ids[character] for character in text], np.int32)

    def text(self, ids: Sequence[int]) -> str:
        """See `Codec.text`."""
        # A model may know more ids than there are characters.
        return "".join(self.characters[number : number + 1] for number in ids)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.characters)}


@dataclasses.dataclass(frozen=True, eq=False)
class TokenCodec(Codec):
    """The ids of a tokenizer.

    Attributes:
      encoder: of the run.
      column: of its tokens.
    """

    encoder: Encoder
    column: str

    def encode(self, text: str) -> np.ndarray:
        """See `Codec.encode`."""
        try:
            ids = self.encoder.tokens.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(f"prompt {shortened(repr(text))} cannot be encoded: {error}") from error
        begins = self.encoder.ends[:1] if self.column in self.encoder.begin_end else ()
        return np.array([*begins, *ids], np.int32)

    def text(self, ids: Sequence[int]) -> str:
        """See `Codec.text`."""
        return self.encoder.names.text(ids)

    @functools.cached_property
    def ends(self) -> frozenset[int]:  # noqa: D102
        return frozenset(self.encoder.ends[1:])


def codec_of(inputs: Any, column: str) -> Codec:
    """Returns how a run's texts become ids.

    Args:
      inputs: `lsm.data.inputs.Inputs` of the run.
      column: of its tokens.

    Raises:
      DataError: its tokens are made of no text.
    """
    if inputs.encoder is not None and column in inputs.encoder.columns:
        return TokenCodec(inputs.encoder, column)
    if inputs.characters is not None:
        return CharacterCodec(inputs.characters)
    raise DataError(f"generate: the run has kept no tokenizer of column {column!r}; give ids.")
