"""Text as windows of characters, for language models."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsm.data.dataset import ArrayDataset, Columns, Dataset, PathLike, Read, Spec
from lsm.data.source import Source, SplitSource, select
from lsm.data.tfds import Tfds
from lsm.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class CharText(Source):
    """Windows of `length` characters and the character after each.

    Column `tokens` int32 (length + 1,): the model reads the first `length` and predicts the last
    `length`. For training every position starts an example. For evaluation (`Dataset.evaluation`)
    the windows follow each other, so that every character but the first is predicted once, and
    `weight` float32 (length,) is 0 at the padding of the last.

    The vocabulary is the sorted characters of the whole split "train" of `source`; another split
    with a character beyond it is an error. Slices such as "train[:90%]" count characters.

    Attributes:
      source: where the text comes from; the texts of a split are put one after the other.
      length: characters that the model reads at a time, at least 1.
      column: the column of `source` that holds the text.
    """

    source: SplitSource = dataclasses.field(default_factory=lambda: Tfds("tiny_shakespeare"))
    length: int = 64
    column: str = "text"

    def __post_init__(self):
        if self.length < 1:
            raise ConfigError(f"CharText.length: {self.length} is below 1.")

    def __str__(self) -> str:
        return f"characters of {self.source}"

    def splits(self, data_dir: PathLike | None = None) -> tuple[str, ...]:
        """See `Source.splits`."""
        return self.source.splits(data_dir)

    def open(self, split: str, data_dir: PathLike | None = None) -> "CharWindows":
        """See `Source.open`."""
        # All splits: the vocabulary is that of "train", and slices count characters of each.
        texts = {name: self._codes(name, data_dir) for name in self.source.shards(data_dir)}
        if "train" not in texts:
            raise DataError(
                f"CharText: {self.source} has no split 'train' to take characters from."
            )
        # Sorted, so that the ids do not depend on which character comes first.
        characters = np.unique(texts["train"])
        shards = {name: [len(codes)] for name, codes in texts.items()}

        def encoded(name: str) -> Dataset:
            tokens = _encode(texts[name], characters, f"split {name!r} of {self.source}")
            return ArrayDataset({"tokens": tokens})

        part = select(split, shards, encoded, str(self.source))
        if len(part) <= self.length:
            raise DataError(
                f"split {split!r} of {self.source} has {len(part)} characters; CharText.length "
                f"{self.length} needs at least {self.length + 1}."
            )
        tokens = part.take(np.arange(len(part)))["tokens"]
        return CharWindows(tokens, self.length, tuple(map(chr, characters.tolist())))

    def _codes(self, name: str, data_dir: PathLike | None) -> np.ndarray:
        """The text of a whole split as Unicode code points (characters,) uint32."""
        dataset = self.source.open(name, data_dir)
        if self.column not in dataset.spec:
            raise DataError(
                f"CharText.column: {self.source} has no column {self.column!r}; "
                f"it has {', '.join(dataset.spec)}."
            )
        texts = dataset.take(np.arange(len(dataset)))[self.column]
        try:
            text = "".join(t.decode() if isinstance(t, bytes) else str(t) for t in texts)
            # A code point is four bytes there: 200 times as fast as ord() of each character.
            return np.frombuffer(text.encode("utf-32-le"), np.uint32)
        except UnicodeError as error:
            raise DataError(
                f"split {name!r} of {self.source}, column {self.column!r}, is not text: {error}."
            ) from error


class CharWindows(Dataset):
    """Every window of length + 1 tokens of a text, numbered by the position where it starts."""

    def __init__(self, tokens: np.ndarray, length: int, vocabulary: tuple[str, ...]):
        """Takes tokens (characters,) int32, more than `length` of them."""
        self._tokens, self._length, self.vocabulary = tokens, length, vocabulary
        # (characters - length, length + 1), a view: a window is copied when it is taken.
        self._windows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)

    def __len__(self) -> int:
        return len(self._windows)

    def take(self, indices: np.ndarray) -> Columns:
        """See `Dataset.take`."""
        return {"tokens": self._windows[indices]}

    @property
    def spec(self) -> Spec:
        """See `Dataset.spec`."""
        return {"tokens": jax.ShapeDtypeStruct((self._length + 1,), np.int32)}

    @property
    def classes(self) -> tuple[str, ...]:
        """The vocabulary: the character of each token."""
        return self.vocabulary

    @property
    def characters(self) -> str:
        """See `Dataset.characters`."""
        return "".join(self.vocabulary)

    @property
    def vocabulary_size(self) -> int:
        """See `Dataset.vocabulary_size`."""
        return len(self.vocabulary)

    @property
    def identity(self) -> dict[str, Any]:
        """See `Dataset.identity`; the text is in memory, so that its checksum is cheap."""
        text = hashlib.sha256(np.ascontiguousarray(self._tokens))
        text.update("".join(self.vocabulary).encode())
        return super().identity | {"text": text.hexdigest()[:16]}

    def resident(self) -> tuple[Columns, Read] | None:
        """See `Dataset.resident`."""
        if type(self).take is not CharWindows.take:
            return None
        offsets = np.arange(self._length + 1, dtype=np.int32)

        def read(columns: Mapping[str, jax.Array], starts_B: jax.Array) -> dict[str, jax.Array]:
            places_BxT = starts_B[:, None] + offsets
            return {"tokens": jnp.take(columns["tokens"], places_BxT, mode="clip")}

        return {"tokens": self._tokens}, read

    def evaluation(self) -> Dataset:
        """Returns windows side by side, `weight` 0 where the last goes beyond the text."""
        targets = len(self._tokens) - 1
        windows = -(-targets // self._length)
        # Padding is character 0, as good as any: its weight is 0.
        padded = np.zeros(windows * self._length + 1, np.int32)
        padded[: targets + 1] = self._tokens
        # (windows, T + 1), each by one over the next: a last target is the next first input.
        tokens = np.lib.stride_tricks.sliding_window_view(padded, self._length + 1)[:: self._length]
        weight = (np.arange(windows * self._length) < targets).astype(np.float32)
        columns = {"tokens": tokens, "weight": weight.reshape(windows, self._length)}
        return ArrayDataset(columns, self.vocabulary, self.identity)


def _encode(codes: np.ndarray, characters: np.ndarray, where: str) -> np.ndarray:
    """Returns the place of each code point in `characters` (sorted), int32.

    Raises:
      DataError: a code point is not among them.
    """
    tokens = np.searchsorted(characters, codes)
    # searchsorted says one beyond the last of what is larger than all; of others, any place.
    unknown = np.flatnonzero(characters[np.minimum(tokens, len(characters) - 1)] != codes)
    if len(unknown):
        character = chr(codes[unknown[0]])
        raise DataError(
            f"{where}: character {character!r} (U+{ord(character):04X}) at position "
            f"{unknown[0]:,} is not among the {len(characters)} of split 'train'."
        )
    return tokens.astype(np.int32)
