"""Packed tokens on disk, and windows of them, for language models.

A split is a folder that `python -m lsm.data.tokenize` writes:

    FOLDER/SPLIT/index.json      see `Index`
    FOLDER/SPLIT/00000.bin, ...  shards: little-endian ids, one after the other, and nothing else
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from lsm.checks import require_sizes
from lsm.data.dataset import Columns, Dataset, PathLike, Spec, digest
from lsm.data.source import SplitSource
from lsm.errors import ConfigError, DataError
from lsm.files import expanded, parsed_json

_FORMAT = "lsm tokens 1"
INDEX = "index.json"
"""Name of the file that describes a split."""

_SEGMENTS = "tokens_segments"
_MAPS = 256  # shards mapped at a time: each takes a file descriptor, of which there may be 1,024


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of tokens.

    Attributes:
      file: its name in the split's folder.
      tokens: how many it holds.
      documents: how many end in it.
      sha256: of its content, hexadecimal.
    """

    file: str
    tokens: int
    documents: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Index:
    """What a split of packed tokens is: its index.json.

    Attributes:
      tokenizer: name of the tokenizer.
      tokenizer_sha256: of its files.
      vocabulary: number of ids; one more than the largest that may occur.
      eos: id that follows every document, or None.
      dtype: of the ids, "uint16" or "uint32".
      inputs: [name, size] of what was read; the size is None where it is not known beforehand.
      column: field of JSON or feature of TFDS that was read.
      shard_tokens: tokens from which on a shard was closed.
      shards: the shards that are whole, in order.
      position: (input, offset, inside) behind the last shard; None when all was read.
    """

    tokenizer: str
    tokenizer_sha256: str
    vocabulary: int
    eos: int | None
    dtype: str
    inputs: tuple[tuple[str, int | None], ...]
    column: str
    shard_tokens: int
    shards: tuple[Shard, ...] = ()
    position: tuple[int, int, int] | None = (0, 0, 0)

    @property
    def tokens(self) -> int:
        """Tokens in the shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents that end in the shards."""
        return sum(shard.documents for shard in self.shards)

    def to_json(self) -> bytes:
        """Returns the content of index.json."""
        return json.dumps({"format": _FORMAT} | dataclasses.asdict(self), indent=1).encode()


def read_index(folder: pathlib.Path) -> Index | None:
    """Returns the index of a split's folder, None where there is none.

    Raises:
      DataError: it cannot be read, or is of another format.
    """
    path = folder / INDEX
    try:
        fields = parsed_json(path.read_bytes())
        kind = fields.pop("format")
        if kind == _FORMAT:
            if fields["dtype"] not in ("uint16", "uint32"):
                raise ValueError(f"dtype {fields['dtype']!r}")
            # JSON has made lists of them, and `tokenize` compares indices by ==.
            fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
            fields["inputs"] = tuple((name, size) for name, size in fields["inputs"])
            fields["position"] = fields["position"] and tuple(fields["position"])
            return Index(**fields)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged: {error}; remove {folder} and tokenize again."
        ) from None
    raise DataError(f"{path} is of format {kind!r}, and this lsm reads {_FORMAT!r}.")


def check_shards(folder: pathlib.Path, index: Index, content: bool = False) -> None:
    """Checks that every shard has its size, and by its checksum, which reads it, its `content`.

    Raises:
      DataError: a shard is missing or damaged.
    """
    size = np.dtype(index.dtype).itemsize
    for shard in index.shards:
        path, expected = folder / shard.file, shard.tokens * size
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            problem = "is not there"
        elif found != expected:
            problem = f"is damaged: it has {found:,} bytes, and index.json says {expected:,}"
        elif content and _sha256(path) != shard.sha256:
            problem = "is damaged: its checksum is not that of index.json"
        else:
            continue
        raise DataError(f"{path} {problem}; remove {folder} and tokenize again.")


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True)
class Tokens(SplitSource):
    """Windows of `length` tokens and the token after each, side by side over packed documents.

    Column `tokens` int32 (length + 1,): the model reads the first `length` and predicts the last
    `length`. Window i holds the tokens from i * length to (i + 1) * length, that one included, so
    that every token but the first of the stream is predicted in just one window. Documents follow
    each other with the end-of-text token between them, and windows run across their borders.

    For training a rest that fills no window is left out; for evaluation (`Dataset.evaluation`) it
    makes a last window, with `weight` float32 (length,) 0 at the padding. Slices such as
    "train[:90%]" count windows. Shards are mapped into memory, and only what a batch needs is read.

    Attributes:
      path: folder that `python -m lsm.data.tokenize` wrote. A relative path that is not in the
        working directory is looked for in the data directory.
      length: tokens that the model reads at a time, at least 1.
      segments: whether documents that share a window are told apart, for attention that stays
        within each: column `tokens_segments` int32 (length + 1,) counts them from 1. The first
        token of a document is then no target.
    """

    path: str
    length: int = 1024
    segments: bool = False

    def __post_init__(self):
        if not self.path:
            raise ConfigError("Tokens.path: is empty; give a folder of lsm.data.tokenize.")
        require_sizes(self, "length")

    def __str__(self) -> str:
        return f"tokens {self.path}"

    def spec(self, split: str, data_dir: PathLike | None = None) -> Spec:
        """See `Source.spec`; the data need not be there."""
        return _spec(self.length, self.segments)

    def shards(self, data_dir: PathLike | None = None) -> dict[str, list[int]]:
        """Returns split name -> [number of windows]; a split below one window counts as one."""
        splits = self._splits(data_dir)
        # One too many where a split is too short: so `open_split` is reached, which says why.
        return {name: [max(1, (index.tokens - 1) // self.length)] for name, index in splits.items()}

    def open_split(self, name: str, data_dir: PathLike | None = None) -> "TokenWindows":
        """See `SplitSource.open_split`."""
        folder, index = self.folder(data_dir) / name, self._splits(data_dir)[name]
        if index.position is not None:
            raise DataError(
                f"split {name!r} of {self} is not finished; run the command that made it again, "
                "and it goes on."
            )
        if index.tokens <= self.length:
            raise DataError(
                f"split {name!r} of {self} has {index.tokens:,} tokens; Tokens.length "
                f"{self.length} needs at least {self.length + 1}."
            )
        if self.segments and index.eos is None:
            raise DataError(
                f"Tokens.segments: split {name!r} of {self} has no token between documents; it was "
                "tokenized with --noappend_eos."
            )
        check_shards(folder, index)
        return TokenWindows(folder, index, self.length, segments=self.segments)

    def folder(self, data_dir: PathLike | None = None) -> pathlib.Path:
        """Returns where the splits are: `path`, or where that is not there `data_dir`/`path`."""
        path = expanded(self.path, "Tokens.path")
        return path if data_dir is None or path.is_dir() else pathlib.Path(data_dir) / path

    def _splits(self, data_dir: PathLike | None) -> dict[str, Index]:
        folder = self.folder(data_dir)
        inside = sorted(path for path in folder.glob("*") if path.is_dir())
        indices = {path.name: read_index(path) for path in inside}
        splits = {name: index for name, index in indices.items() if index is not None}
        if not splits:
            state = "holds no SPLIT/index.json" if folder.is_dir() else "is not there"
            raise DataError(
                f"Tokens.path: folder {folder} {state}; make it by python -m lsm.data.tokenize "
                f"INPUT --tokenizer=FOLDER --out={folder}"
            )
        makers = {index.tokenizer_sha256: (name, index) for name, index in splits.items()}
        if len(makers) > 1:
            made = ", ".join(f"{name} by {index.tokenizer}" for name, index in makers.values())
            raise DataError(f"{self}: the splits are of different tokenizers: {made}.")
        return splits


class TokenWindows(Dataset):
    """Windows `start` to `stop` of a split.

    Attributes:
      index: what the split is.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        index: Index,
        length: int,
        start: int = 0,
        stop: int | None = None,
        segments: bool = False,
    ):
        """Takes the folder of a split, with its index, whose shards were checked."""
        self.index, self._folder, self._length, self._start = index, folder, length, start
        self._segments = segments
        self._windows = (index.tokens - 1) // length  # of the whole split
        self._stop = self._windows if stop is None else stop
        self._begins = np.cumsum([0, *(shard.tokens for shard in index.shards)])
        # A cache of this object: one around the method would serve, and keep, all objects.
        self._mapped = functools.lru_cache(_MAPS)(self._map)

    def __len__(self) -> int:
        return self._stop - self._start

    def take(self, indices: np.ndarray) -> Columns:
        """See `Dataset.take`.

        Raises:
          DataError: a shard holds an id that is none of the tokenizer's.
        """
        indices = np.asarray(indices) + self._start
        # Zeros, for what `_read` leaves beyond the last token.
        stored_BxT1 = np.zeros((len(indices), self._length + 1), self.index.dtype)
        for window, row in zip(indices.tolist(), stored_BxT1, strict=True):
            self._read(window * self._length, row)
        # JAX reports no index out of range: an embedding would give NaN or another row.
        if stored_BxT1.size and stored_BxT1.max() >= self.index.vocabulary:
            raise DataError(
                f"{self._folder} is damaged: it holds id {stored_BxT1.max():,}, and its tokenizer "
                f"{self.index.tokenizer} has {self.index.vocabulary:,}; tokenize again."
            )
        batch = {"tokens": stored_BxT1.astype(np.int32)}
        if self._segments:
            # The token that ends a document is of it: what is counted is the ends before.
            ends_BxT1 = np.cumsum(stored_BxT1 == self.index.eos, axis=1, dtype=np.int32)
            batch[_SEGMENTS] = 1 + np.pad(ends_BxT1[:, :-1], ((0, 0), (1, 0)))
        return batch

    @property
    def spec(self) -> Spec:
        """See `Dataset.spec`."""
        return _spec(self._length, self._segments)

    @property
    def vocabulary_size(self) -> int:
        """See `Dataset.vocabulary_size`."""
        return self.index.vocabulary

    @property
    def identity(self) -> dict[str, Any]:
        """See `Dataset.identity`."""
        made = self.index.tokenizer_sha256, self.index.dtype
        shards = digest(*made, [shard.sha256 for shard in self.index.shards])
        return super().identity | {"tokens": self.index.tokens, "shards": shards}

    def rows(self, start: int, stop: int) -> "TokenWindows":
        """See `Dataset.rows`."""
        whole = self._folder, self.index, self._length
        return TokenWindows(*whole, self._start + start, self._start + stop, self._segments)

    def evaluation(self) -> Dataset:
        """Returns the windows with `weight`, and one more for the rest where these are the last."""
        # Every token but the first of the stream; of a slice that ends before, whole windows.
        targets = self.index.tokens - 1
        if self._stop < self._windows:
            targets = self._stop * self._length
        return _Weighed(self, targets - self._start * self._length)

    def _read(self, token: int, row: np.ndarray) -> None:
        """Fills `row` with the ids from `token` on; leaves what is beyond the last."""
        # The last shard that begins at `token` or before; a window may go on in the next ones.
        shard = int(np.searchsorted(self._begins, token, side="right")) - 1
        while len(row) and shard < len(self.index.shards):
            part = self._mapped(shard)[token - self._begins[shard] :][: len(row)]
            row[: len(part)] = part
            token, row, shard = token + len(part), row[len(part) :], shard + 1

    def _map(self, number: int) -> np.ndarray:
        shard = self.index.shards[number]
        path = self._folder / shard.file
        dtype = np.dtype(self.index.dtype).newbyteorder("<")
        # A plain view: indexing by the memory map's own class is slower (see `ArrayDataset`).
        return np.asarray(np.memmap(path, dtype, mode="r", shape=(shard.tokens,)))


class _Weighed(Dataset):
    """Windows that are read once: `targets` tokens to predict, the rest of the last is padding."""

    def __init__(self, windows: TokenWindows, targets: int):
        self._windows, self._targets = windows, targets
        self._length = windows.spec["tokens"].shape[0] - 1

    def __len__(self) -> int:
        return -(-self._targets // self._length)

    def take(self, indices: np.ndarray) -> Columns:
        indices = np.asarray(indices)
        places_BxT = indices[:, None] * self._length + np.arange(self._length)
        weight_BxT = (places_BxT < self._targets).astype(np.float32)
        # The last window may be one more than the split has: `take` reads what is there of it.
        return self._windows.take(indices) | {"weight": weight_BxT}

    @property
    def spec(self) -> Spec:
        weight = jax.ShapeDtypeStruct((self._length,), np.float32)
        return self._windows.spec | {"weight": weight}

    @property
    def identity(self) -> dict[str, Any]:
        return self._windows.identity | super().identity


def _spec(length: int, segments: bool) -> Spec:
    names = ("tokens", _SEGMENTS) if segments else ("tokens",)
    return {name: jax.ShapeDtypeStruct((length + 1,), np.int32) for name in names}
