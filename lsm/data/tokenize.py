"""Turns texts into packed tokens, which `lsm.data.Tokens` reads.

    python -m lsm.data.tokenize 'corpus/*.jsonl.gz' --tokenizer=DIR --out=DIR [--column=text]
    python -m lsm.data.tokenize input.txt           --tokenizer=DIR --out=DIR --split=train
    python -m lsm.data.tokenize tfds:NAME           --tokenizer=DIR --out=DIR [--data_dir=DIR]
    python -m lsm.data.tokenize train input.txt     --kind=bpe --size=8000 --out=DIR

The last one learns a tokenizer: see `lsm.data.texts.train`.

A document is an object of a .jsonl, .json or .ndjson file (a line each), an example of TFDS, or any
other file whole; files may be gzipped. It is followed by the end-of-text token. A tokenizer is a
tokenizer.json, or a folder with one, with vocab.json and merges.txt, or with vocab.txt.

Memory is bounded (by the longest line, of JSON). Killed at any moment, the same command goes on
behind the last whole shard, and the files are those of a run that was not killed, for any number of
workers. A finished split is not written again, but its checksums are compared.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import flags, logging

from lsm import command_line
from lsm.checks import THREADS
from lsm.cpu import cores
from lsm.data import documents
from lsm.data.dataset import PathLike
from lsm.data.documents import Piece, Position
from lsm.data.texts import train
from lsm.data.texts.tokenizer import END_OF_TEXT, Tokenizer
from lsm.data.tokens import INDEX, Index, Shard, check_shards, read_index
from lsm.errors import ConfigError, DataError, shortened
from lsm.files import atomic_write, exclusive, expanded, readable_disk_errors

SHARD_TOKENS = 1 << 28
"""Half a GiB of uint16: at a million tokens a second, what a kill costs is under five minutes."""

Told = Callable[[int, Position], None]
"""Takes progress: tokens so far, and where reading is."""


@dataclasses.dataclass(frozen=True)
class Packing:
    """How texts become the tokens of one split.

    Attributes:
      tokenizer: see `lsm.data.texts.tokenizer.Tokenizer`.
      split: name of the split that is written.
      slice: what to read of TFDS, in its slicing syntax; None is `split`.
      column: field of JSON, or feature of TFDS, that holds the text.
      shard_tokens: tokens from which on a shard is closed; it may hold a piece more.
      eos: name of the token that follows every document; None for none.
      workers: threads that encode; they alter nothing else.
    """

    tokenizer: PathLike
    split: str = "train"
    slice: str | None = None
    column: str = "text"
    shard_tokens: int = SHARD_TOKENS
    eos: str | None = END_OF_TEXT
    workers: int = 1

    def __post_init__(self):
        for name, most in (("shard_tokens", 1 << 40), ("workers", THREADS)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"--{name}: {getattr(self, name)} given; allowed: 1 to {most:,}.")
        if self.split in ("", "..") or pathlib.PurePath(self.split).name != self.split:
            raise ConfigError(f"--split: {self.split!r} is no name of a folder, such as 'train'.")


def tokenize(
    inputs: Sequence[str],
    out: PathLike,
    packing: Packing,
    data_dir: PathLike | None = None,
    told: Told = lambda tokens, position: None,
) -> Index:
    """Writes a split of packed tokens to `out`/SPLIT, or the rest of it; returns its index.

    Args:
      inputs: files, patterns of them, and "tfds:NAME".
      out: folder of the splits.
      packing: how.
      data_dir: where TFDS datasets are.
      told: called now and then.

    Raises:
      DataError: an input or the tokenizer is not there or cannot be read, the inputs hold no text,
        `out` holds something else or is being written.
      TrainingError: the disk cannot be written.
    """
    tokenizer = Tokenizer(packing.tokenizer)
    eos = None if packing.eos is None else tokenizer.eos(packing.eos)
    sources = documents.find(inputs, packing.slice or packing.split, packing.column, data_dir)
    # What the split would be, but for its shards: compared with what is there.
    wanted = Index(
        tokenizer=tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        vocabulary=tokenizer.vocabulary,
        eos=eos,
        dtype=tokenizer.dtype.name,
        inputs=tuple((source.name, source.size) for source in sources),
        column=packing.column,
        shard_tokens=packing.shard_tokens,
    )
    folder = expanded(out, "--out") / packing.split
    _check_siblings(folder, wanted)
    with readable_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    taken = DataError(f"--out: another process is writing {folder}.")
    with exclusive(folder / ".lock", taken):
        index = _found(folder, wanted)
        # Finished: nothing is left but to check it.
        if index.position is None:
            check_shards(folder, index, content=True)
            return index
        check_shards(folder, index)
        with contextlib.closing(_Writer(folder, index)) as writer:
            pieces = documents.read(sources, Position(*index.position), tokenizer.joins)
            for piece, ids in _encoded(pieces, tokenizer, packing.workers):
                writer.add(piece, ids)
                told(writer.tokens, piece.after)
            return writer.finish()


class _Writer:
    """Appends to a split; shards and the index appear whole."""

    def __init__(self, folder: pathlib.Path, index: Index):
        self._folder, self._index = folder, index
        self.tokens = index.tokens
        self._open()

    def _open(self) -> None:
        self._path = self._folder / f"{len(self._index.shards):05d}.bin"
        self._part = self._path.with_name(self._path.name + ".part")
        with readable_disk_errors(self._path):
            self._file = self._part.open("wb")
        self._sha256, self._held, self._documents = hashlib.sha256(), 0, 0

    def add(self, piece: Piece, ids: np.ndarray) -> None:
        """Appends the ids of a piece, and the end of its document."""
        # An empty document leaves nothing, not even an end.
        if not piece.text:
            return
        eos = self._index.eos
        if piece.ends and eos is not None:
            # A Python int would make the ids int64.
            ids = np.append(ids, ids.dtype.type(eos))
        content = ids.tobytes()
        with readable_disk_errors(self._path):
            self._file.write(content)
        self._sha256.update(content)
        self.tokens, self._held = self.tokens + len(ids), self._held + len(ids)
        self._documents += piece.ends
        # Only behind a piece: there is a place from which reading can go on.
        if self._held >= self._index.shard_tokens:
            self._keep(piece.after)
            self._open()

    def finish(self) -> Index:
        """Completes the split; returns its index."""
        if not self.tokens:
            raise DataError(f"--split: the inputs of {self._index_name()} hold no text.")
        if self._held:
            self._keep(None)
        else:
            self._write(dataclasses.replace(self._index, position=None))
        return self._index

    def close(self) -> None:
        """Lets go of the open shard; nothing of it stays."""
        with contextlib.suppress(OSError):  # a full disk was told of already
            self._file.close()
        self._part.unlink(missing_ok=True)

    def _keep(self, position: Position | None) -> None:
        """Publishes the open shard, then the index that names it."""
        with readable_disk_errors(self._path):
            self._file.flush()
            # On the disk before it has its name: else a power cut may leave an empty shard.
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self._path)
        name, digest = self._path.name, self._sha256.hexdigest()
        shards = (*self._index.shards, Shard(name, self._held, self._documents, digest))
        self._write(dataclasses.replace(self._index, shards=shards, position=position))

    def _write(self, index: Index) -> None:
        atomic_write(self._folder / INDEX, index.to_json())
        self._index = index

    def _index_name(self) -> str:
        return ", ".join(name for name, _ in self._index.inputs)


def _encoded(
    pieces: Iterator[Piece], tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yields pieces with their ids, in order; `workers` threads encode some batches ahead."""
    pool = ThreadPoolExecutor(workers)
    try:
        waiting: collections.deque = collections.deque()
        for batch in _batches(pieces):
            texts = [piece.text for piece in batch]
            waiting.append((batch, pool.submit(tokenizer.encode, texts)))
            # Enough that no thread runs dry, and few enough that memory is bounded.
            if len(waiting) > 2 * workers:
                batch, ids = waiting.popleft()
                yield from zip(batch, ids.result(), strict=True)
        for batch, ids in waiting:
            yield from zip(batch, ids.result(), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Collects short documents, until they make a long one."""
    batch, characters = [], 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= documents.PIECE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _check_siblings(folder: pathlib.Path, wanted: Index) -> None:
    """Checks that the other splits are of the same tokenizer."""
    for other in sorted(folder.parent.glob("*/" + INDEX)):
        index = read_index(other.parent)
        if index is not None and index.tokenizer_sha256 != wanted.tokenizer_sha256:
            raise DataError(
                f"--out: {other.parent} was made by another tokenizer, {index.tokenizer} of "
                f"{index.vocabulary:,} ids, not {wanted.tokenizer} of {wanted.vocabulary:,}; give "
                "another folder, or remove that one."
            )


def _found(folder: pathlib.Path, wanted: Index) -> Index:
    """The index to go on from: that of the folder, which must be `wanted` but for progress."""
    index = read_index(folder)
    if index is None:
        return wanted
    for field in dataclasses.fields(Index):
        before, now = getattr(index, field.name), getattr(wanted, field.name)
        # Progress is to differ; all else decides what the files hold.
        if field.name not in ("shards", "position") and before != now:
            raise DataError(
                f"--out: {folder} was begun with {field.name} {shortened(str(before), 100)}, not "
                f"{shortened(str(now), 100)}; give another folder or --split, or remove that one."
            )
    return index


class _Progress:
    """A line on stderr: rewritten on a terminal, else one each half minute."""

    def __init__(self, split: str):
        self._split, self._live = split, sys.stderr.isatty()
        self._start = self._shown = time.monotonic()
        self._first: int | None = None

    def __call__(self, tokens: int, position: Position) -> None:
        """Shows progress where it is time; see `Told`."""
        now = time.monotonic()
        self._first = tokens if self._first is None else self._first
        if now - self._shown < (1 if self._live else 30):
            return
        self._shown = now
        rate = (tokens - self._first) / (now - self._start) / 1e6
        line = f"{self._split}: {tokens:,} tokens, {rate:.2f} M/s, input {position.input + 1}"
        print(line, end="\r" if self._live else "\n", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:
        return train.main(argv[1:])
    again = "; the same command goes on"
    return command_line.run(_act, _flags(), argv, doc=__doc__, words=True, again=again)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    string = functools.partial(flags.DEFINE_string, flag_values=given)
    integer = functools.partial(flags.DEFINE_integer, flag_values=given, lower_bound=1)
    string("tokenizer", None, "folder or file of the tokenizer", required=True)
    string("out", None, "where the splits go; made if it is not there", required=True)
    string("split", None, "split to write; default train, or all that TFDS has")
    string("slice", None, "what to read of TFDS, as train[:99%]; default the split")
    string("column", "text", "field of JSON, or feature of TFDS, with the text")
    integer("shard_tokens", SHARD_TOKENS, "tokens from which a shard is closed")
    integer("workers", cores(), "threads that encode")
    string("eos", END_OF_TEXT, "name of the token between documents")
    flags.DEFINE_bool("append_eos", True, "whether to put that token after each document", given)
    string("data_dir", None, "where TFDS datasets are; default TFDS's own place")
    return given


def _act(given: flags.FlagValues, inputs: list[str]) -> None:
    if not inputs:
        raise ConfigError("no input given; files, patterns of them or tfds:NAME are needed.")
    logging.set_verbosity(logging.WARNING)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads are ours, as many as asked for
    for split in _splits(given, inputs):
        _write_split(given, inputs, split)


def _splits(given: flags.FlagValues, inputs: list[str]) -> list[str]:
    """The splits to write: as asked for, or those that the dataset has."""
    if given.split or given.slice or not any(map(documents.is_tfds, inputs)):
        return [given.split or "train"]
    if len(inputs) > 1:
        raise ConfigError("--split: is needed where a dataset of TFDS is not the only input.")
    return documents.tfds_splits(inputs[0], given.data_dir)


def _write_split(given: flags.FlagValues, inputs: list[str], split: str) -> None:
    start = time.perf_counter()
    packing = Packing(
        tokenizer=given.tokenizer,
        split=split,
        slice=given.slice,
        column=given.column,
        shard_tokens=given.shard_tokens,
        eos=given.eos if given.append_eos else None,
        workers=given.workers,
    )
    index = tokenize(inputs, given.out, packing, given.data_dir, _Progress(split))
    print(
        f"{split}: {index.tokens:,} tokens of {index.documents:,} documents by {index.tokenizer} "
        f"in {expanded(given.out, '--out') / split} ({time.perf_counter() - start:.0f} s)"
    )


if __name__ == "__main__":
    sys.exit(main())
