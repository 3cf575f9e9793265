"""The texts and bytes of single tokens, of which some hold only a part of a character."""

import re
from typing import NamedTuple

from lsm.data.texts.codec import Codec, TokenCodec

_HALF = "\ufffd"
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # as sentencepiece names them
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_OF_NAMES = {chr(byte): byte for byte in _PRINTABLE}
_OF_NAMES |= {chr(256 + number): byte for number, byte in enumerate(_OTHERS)}
"""The bytes that characters stand for in the names of byte-level BPE (GPT-2)."""


class Token(NamedTuple):
    """A token by itself.

    Attributes:
      octets: its bytes.
      shown: how many of them are part of a text: none of a special token.
    """

    octets: bytes
    shown: int

    @property
    def text(self) -> str:
        """Its text; "bytes:" and these, escaped, where they are no characters."""
        try:
            return self.octets.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.octets)


class Tokens:
    """The tokens of a codec, each looked at once."""

    def __init__(self, codec: Codec):
        self._codec = codec
        self._names = codec.encoder.names if isinstance(codec, TokenCodec) else ()
        self._known: dict[int, Token] = {}

    def __getitem__(self, number: int) -> Token:
        if number not in self._known:
            self._known[number] = self._token(number)
        return self._known[number]

    def _token(self, number: int) -> Token:
        # Behind itself: at the beginning of a text, some lose their space.
        text = self._codec.text([number, number])[len(self._codec.text([number])) :]
        name = self._names[number] if number < len(self._names) else ""
        if text and _HALF not in text:
            octets = text.encode()
        elif found := _BYTE.fullmatch(name):
            octets = bytes([int(found[1], 16)])
        elif text and all(character in _OF_NAMES for character in name):
            octets = bytes(_OF_NAMES[character] for character in name)
        else:
            octets = (text or name).encode()
        return Token(octets, len(octets) if text else 0)
