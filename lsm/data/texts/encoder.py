"""Texts to columns of token ids, and ids back to texts."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lsm.data.texts import learn
from lsm.data.texts.ends import around, ends_of, put_ends
from lsm.data.texts.tokenizer import plain
from lsm.errors import ConfigError, DataError

LENGTH, TYPES, WORDS, SEGMENTS = "_length", "_types", "_words", "_segments"
"""What stands beside a column NAME of tokens: NAME_length and the like."""

CHARACTERS = 128
"""For each token that is kept, of which a text is looked at: a bound of memory."""
_SPACE = "Ġ"
"""The space of byte-level BPE, which is a part of the word behind it."""


class Ragged(NamedTuple):
    """Rows of different lengths, one after the other.

    Attributes:
      values: (all,) integers.
      offsets: (rows + 1,) int64, where each row begins, and at the end their number.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], dtype: Any) -> "Ragged":
        """Returns rows (n,), each of its own length, in `dtype`."""
        values = np.concatenate([np.zeros(0, dtype), *rows]).astype(dtype, copy=False)
        return cls(values, np.cumsum([0, *map(len, rows)], dtype=np.int64))

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Returns the lengths (N,) int64 of rows (N,)."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def padded(self, rows: np.ndarray, width: int, fill: int, dtype: Any) -> np.ndarray:
        """Returns rows (N,) as (N, width), `fill` behind the end of each; none is longer."""
        places = np.arange(width)
        real = places < self.lengths(rows)[:, None]
        padded = np.full(real.shape, fill, dtype)
        padded[real] = self.values[(self.offsets[rows, None] + places)[real]]
        return padded


class TokenNames(Sequence[str]):
    """The names of tokens by id; of ids that are none, ""."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        ids = tokenizer.get_vocab(with_added_tokens=True)
        self._names = [""] * (max(ids.values(), default=-1) + 1)
        for name, number in ids.items():
            self._names[number] = name

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: Any) -> Any:
        return self._names[number]

    def text(self, ids: Iterable[int]) -> str:
        """Returns the text of ids (n,), without special tokens and what is no id."""
        known = [int(x) for x in ids if 0 <= x < len(self)]
        return self._tokenizer.decode(known, skip_special_tokens=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """How texts become columns; see `lsm.data.Texts`, whose fields most of these are.

    Attributes:
      tokenizer: what a tokenizer.json holds.
      columns: column of tokens -> the column of texts it is made of, or the two.
      length: tokens of a text that are kept, special ones included.
      truncate: which side of a longer text is cut off, "end" or "start".
      buckets: lengths that batches are cut to, ascending, `length` the last.
      begin_end: columns with tokens that begin and end a text.
      words: whether the words of tokens are numbered.
      labels: columns with a label for each token -> the column of tokens that they label.
      chat: of conversations, what a tokenizer_config.json says of them: their template.
      eos: ids that end a text which a model writes, beside that of `ends`.
    """

    tokenizer: str
    columns: Mapping[str, tuple[str, ...]]
    length: int
    truncate: str
    buckets: tuple[int, ...]
    begin_end: tuple[str, ...]
    words: bool
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    chat: Mapping[str, str] | None = None
    eos: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns all but the tokenizer as JSON; without what few have where it is empty."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        few = ("labels", "chat", "eos")
        absent = {"tokenizer", *(name for name in few if not fields[name])}
        return {name: x for name, x in fields.items() if name not in absent}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], tokenizer: str) -> "Encoder":
        """Returns what `to_json` wrote."""
        columns = {name: tuple(of) for name, of in tree["columns"].items()}
        tuples = {name: tuple(tree.get(name, ())) for name in ("buckets", "begin_end", "eos")}
        return cls(tokenizer, **{**tree, **tuples, "columns": columns})

    @functools.cached_property
    def sha256(self) -> str:
        """The checksum of the tokenizer, hexadecimal."""
        return hashlib.sha256(self.tokenizer.encode()).hexdigest()

    @functools.cached_property
    def names(self) -> TokenNames:
        """The names of tokens, which also decode."""
        return TokenNames(_made(self.tokenizer))

    @functools.cached_property
    def tokens(self) -> Any:
        """The `tokenizers.Tokenizer`, which neither cuts nor pads."""
        return _made(self.tokenizer)

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids that begin and end a text, or none."""
        return tuple(map(self.tokens.token_to_id, ends_of(self.tokens) or ()))

    @functools.cached_property
    def begins(self) -> tuple[int, ...]:
        """The ids before a text: of a column in `begin_end`, where there is one."""
        return tuple((self.around(self.begin_end[0]) if self.begin_end else around(self.tokens))[0])

    def around(self, name: str) -> tuple[list[int], list[int]]:
        """Returns the ids before a text in a column of tokens, and behind it."""
        return around(self._tokenizers[name])

    @functools.cached_property
    def pad(self) -> int:
        """The id of padding: the tokenizer's own, else 0."""
        ids = _made(self.tokenizer)
        found = [ids.token_to_id(name) for name in (learn.PAD, "<pad>")]
        return next((number for number in found if number is not None), 0)

    @functools.cached_property
    def special(self) -> np.ndarray:
        """The ids (n,) of special tokens."""
        added = _made(self.tokenizer).get_added_tokens_decoder()
        return np.array([number for number, token in added.items() if token.special], np.int64)

    def width(self, lengths: np.ndarray) -> int:
        """Returns the smallest bucket that holds texts of these lengths (N,)."""
        most = lengths.max(initial=0)
        return next(bucket for bucket in self.buckets if bucket >= most)

    @functools.cached_property
    def beside(self) -> frozenset[str]:
        """The columns that tell of those with tokens."""
        kinds = (LENGTH, TYPES, WORDS, SEGMENTS)
        return frozenset(name + kind for name in self.columns for kind in kinds)

    def cut(self, batch: Mapping[str, Any], width: int) -> dict[str, Any]:
        """Returns a batch with its columns of tokens (B, T), and what is beside them, as wide."""
        known = self.beside.union(self.columns, self.labels)
        return {n: x[:, :width] if n in known and len(x.shape) > 1 else x for n, x in batch.items()}

    def parts(self, name: str) -> dict[str, tuple[int, Any]]:
        """Returns the columns (N, T) made of texts for column `name`: padding and dtype of each."""
        fills = {"": self.pad, TYPES: 0, WORDS: -1}
        return {name + kind: (fills[kind], np.int32) for kind in self._kinds(name)}

    def _kinds(self, name: str) -> list[str]:
        """The ends of the names of the columns (N, T) made of texts for column `name`."""
        pair = len(self.columns[name]) == 2
        return ["", *([TYPES] if pair else []), *([WORDS] if self.words else [])]

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shape and dtype of one example of each column; needs no tokenizer."""
        wide = jax.ShapeDtypeStruct((self.length,), np.int32)
        spec = {name + kind: wide for name in self.columns for kind in self._kinds(name)}
        lengths = {name + LENGTH: jax.ShapeDtypeStruct((), np.int32) for name in self.columns}
        return spec | lengths | dict.fromkeys(self.labels, wide)

    def encode(
        self, name: str, texts: Sequence[Any], special: bool = False
    ) -> dict[str, list[np.ndarray]]:
        """Returns what `parts` says of column `name`, of each text the rows (n,), not padded.

        Args:
          name: one of `columns`.
          texts: str, or each the list of its words; of a column made of two, pairs of str.
          special: whether the name of a special token in a text, such as [MASK], is that token.

        Raises:
          DataError: the tokenizer cannot encode a text.
        """
        tokenizer = self._tokenizers[name]
        tokenizer.encode_special_tokens = not special
        encode = tokenizer.encode_batch if self.words else tokenizer.encode_batch_fast
        in_words = len(self.columns[name]) == 1 and not any(isinstance(x, str) for x in texts)
        texts = [self._bounded(text) for text in texts]
        if in_words and self._spaced:  # as in the text that the words stand in
            texts = [[" " * (n > 0) + word for n, word in enumerate(words)] for words in texts]
        try:
            made = encode(texts, is_pretokenized=in_words)
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(f"column {name!r}: a text cannot be encoded: {error}") from error
        rows = {name: [np.array(of.ids, np.int64) for of in made]}
        if len(self.columns[name]) == 2:
            rows[name + TYPES] = [np.array(_types(of), np.int64) for of in made]
        if self.words:
            numbers = ([-1 if x is None else x for x in of.word_ids] for of in made)
            rows[name + WORDS] = [np.array(of, np.int64) for of in numbers]
        return rows

    def read(self, name: str, texts: Sequence[Any], special: bool = False) -> dict[str, np.ndarray]:
        """Returns the columns of texts as a model reads them, as wide as their bucket."""
        return self.filled(name, self.encode(name, texts, special))

    def filled(self, name: str, encoded: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
        """Returns what `encode` gave as arrays (N, T), padded, and the lengths (N,) beside them."""
        rows = {part: Ragged.of(of, np.int32) for part, of in encoded.items()}
        everyone = np.arange(len(encoded[name]))
        lengths = rows[name].lengths(everyone)
        width, parts = self.width(lengths), self.parts(name)
        columns = {part: of.padded(everyone, width, *parts[part]) for part, of in rows.items()}
        return columns | {name + LENGTH: lengths.astype(np.int32)}

    def _bounded(self, text: Any) -> Any:
        most = CHARACTERS * self.length
        if self.truncate == "end":
            cut = text[:most]
        else:  # words are numbered from the first, so that all of them stay
            cut = text[-most:] if isinstance(text, str) else text
        return cut if isinstance(text, str) else tuple(map(self._bounded, cut))

    @functools.cached_property
    def _spaced(self) -> bool:
        """Whether the space before a word is a part of it."""
        cut = self.tokens.pre_tokenizer
        # Tried, not read from the file: a sequence may have it somewhere.
        return cut is not None and any(_SPACE in word for word, _ in cut.pre_tokenize_str("a a"))

    @functools.cached_property
    def _tokenizers(self) -> dict[str, Any]:
        """The tokenizer of each column."""
        return {name: self._of(name) for name in self.columns}

    def _of(self, name: str) -> Any:
        made, pair = _made(self.tokenizer), len(self.columns[name]) == 2
        if name in self.begin_end:
            put_ends(made)
        special = made.num_special_tokens_to_add(pair)
        if self.length <= special:
            raise ConfigError(
                f"Texts.length: {self.length} given; column {name!r} has {special} special tokens "
                f"in each text, and allowed is {special + 1} or more."
            )
        side = {"end": "right", "start": "left"}[self.truncate]
        made.enable_truncation(self.length, direction=side)
        return made


def _made(text: str) -> Any:
    import tokenizers

    return plain(tokenizers.Tokenizer.from_str(text))


def around_as_trained(encoder: Encoder, goes_on: bool) -> str:
    """Returns a tokenizer.json that puts around a text itself what `begin_end` has put there.

    Args:
      encoder: of the run.
      goes_on: whether the model writes: then a text has no token behind it.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(encoder.tokenizer)
    if not encoder.begin_end or around(tokenizer) != ([], []):
        return encoder.tokenizer
    put_ends(tokenizer, behind=not goes_on)
    return tokenizer.to_str()


def _types(encoding: Any) -> list[int]:
    """Returns 0 for tokens of the first text of a pair, and 1 for those of the second."""
    if 1 in encoding.type_ids:
        return encoding.type_ids
    # RoBERTa's tokenizers have 0 for both.
    return [int(number == 1) for number in encoding.sequence_ids]
