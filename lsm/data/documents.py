"""Documents of text files, JSON lines and TFDS, in pieces, from any place on."""

import abc
import codecs
import contextlib
import glob
import gzip
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np

from lsm.data.dataset import PathLike
from lsm.data.tfds import Tfds
from lsm.data.values import as_text
from lsm.errors import DataError, listed, nearest
from lsm.files import expanded, parsed_json

PIECE = 1 << 18
"""Characters (bytes, of a text file) in a piece: an encoder takes some hundred times that in
memory, and smaller pieces are slower."""

WHOLE = 1 << 26
"""The same where a document must stay whole."""

_TFDS = "tfds:"
_JSON = (".jsonl", ".ndjson", ".json")
# Not after punctuation: Llama 3 joins that with the line ends behind it.
_SEAM = re.compile(r"[^\W\d_](?=[ \n])")
_EXAMPLES = 16  # of TFDS, read at a time


class Position(NamedTuple):
    """Where reading goes on.

    Attributes:
      input: number of the input.
      offset: where its next document begins, or the rest of a text file: bytes, before any
        compression, or examples of a TFDS split.
      inside: characters of that document (of JSON or TFDS) that were read already.
    """

    input: int = 0
    offset: int = 0
    inside: int = 0


class Piece(NamedTuple):
    """A document, or a part of one; or nothing but the place after it.

    Attributes:
      text: without lone surrogates; empty where there is no document, or an empty one.
      ends: whether the document ends here.
      after: where reading goes on.
    """

    text: str
    ends: bool
    after: Position


class Input(abc.ABC):
    """Something that holds documents.

    Attributes:
      name: for messages and for the index.
      size: the largest offset, or None where that is not known before reading.
    """

    name: str
    size: int | None

    @abc.abstractmethod
    def pieces(self, start: Position, cut: bool) -> Iterator[Piece]:
        """Yields pieces from `start` on, the same whether reading began there or before.

        Args:
          start: the `after` of one of its pieces, or offset 0.
          cut: whether a document may come in pieces of about PIECE, which begin with white space
            after a letter where that can be, else anywhere.

        Raises:
          DataError: what is there cannot be read, or is longer than WHOLE and may not be cut.
        """


class TextFile(Input):
    """A file of UTF-8, gzipped or not, as one document."""

    def __init__(self, path: pathlib.Path):
        self._path, self.name = path, str(path)
        self.size = None if path.suffix == ".gz" else path.stat().st_size

    def pieces(self, start: Position, cut: bool) -> Iterator[Piece]:
        """See `Input.pieces`."""
        offset, limit, held = start.offset, PIECE if cut else WHOLE, b""
        with _readable(self._path) as file:
            # Of a gzipped file this unpacks up to there.
            file.seek(offset)
            while True:
                # A byte beyond the limit tells a whole rest from a piece.
                held += file.read(limit + 1 - len(held))
                if len(held) <= limit:
                    yield Piece(self._decode(held, offset, True), True, Position(start.input + 1))
                    return
                # The first bytes of a character that is cut in two stay in `held`.
                text = self._decode(held, offset, False)
                text = text[: _seam(text, cut, self.name)]
                taken = len(text.encode())
                offset, held = offset + taken, held[taken:]
                yield Piece(text, False, Position(start.input, offset))

    def _decode(self, content: bytes, offset: int, final: bool) -> str:
        try:
            return codecs.getincrementaldecoder("utf-8")().decode(content, final)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._path} is not UTF-8 text: {error.reason} at byte {offset + error.start:,}."
            ) from None


class JsonLines(Input):
    """A file with one JSON object a line, gzipped or not, each a document."""

    def __init__(self, path: pathlib.Path, column: str):
        self._path, self._column, self.name = path, column, str(path)
        self.size = None if path.suffix == ".gz" else path.stat().st_size

    def pieces(self, start: Position, cut: bool) -> Iterator[Piece]:
        """See `Input.pieces`."""
        here = start
        with _readable(self._path) as file:
            file.seek(here.offset)
            for line in file:
                following = Position(here.input, here.offset + len(line))
                if line.strip():
                    text = self._text(line, here.offset)
                    yield from _pieces(text, here, following, cut, self.name)
                here = following
        # Says that this input is done, also where it holds no document.
        yield Piece("", True, Position(start.input + 1))

    def _text(self, line: bytes, offset: int) -> str:
        try:
            record = parsed_json(line)
        except ValueError as error:
            raise DataError(f"{self._line(offset)} is not JSON: {error}.") from None
        if not isinstance(record, dict):
            raise DataError(f"{self._line(offset)} is not a JSON object, {{...}}.")
        if self._column not in record:
            raise DataError(
                f"--column: {self._line(offset)} has no {self._column!r}; it has "
                f"{listed(record)}.{nearest(self._column, record)}"
            )
        return as_text(record[self._column], lambda: f"--column: {self._line(offset)}")

    def _line(self, offset: int) -> str:
        """The file and number of the line at `offset`."""
        # Counted for the message alone: reading may have begun anywhere in the file.
        number, place = 1, 0
        with _readable(self._path) as file:
            while place < offset:
                place += len(file.readline())
                number += 1
        return f"{self._path} line {number:,}"


class TfdsSplit(Input):
    """A split, or a slice of one, of a dataset of TFDS; each example is a document."""

    def __init__(self, name: str, split: str, column: str, data_dir: PathLike | None):
        self._column, self.name = column, f"{_TFDS}{name} {split}"
        try:
            self._examples = Tfds(name, columns=(column,)).open(split, data_dir)
        except DataError as error:
            raise DataError(str(error).replace("Tfds.columns:", "--column:")) from error
        self.size = len(self._examples)

    def pieces(self, start: Position, cut: bool) -> Iterator[Piece]:
        """See `Input.pieces`."""
        here = start
        for first in range(here.offset, self.size, _EXAMPLES):
            rows = np.arange(first, min(first + _EXAMPLES, self.size))
            for value in self._examples.take(rows)[self._column]:
                text = as_text(
                    value, lambda at=here: f"--column: {self.name} example {at.offset:,}"
                )
                following = Position(here.input, here.offset + 1)
                yield from _pieces(text, here, following, cut, self.name)
                here = following
        yield Piece("", True, Position(start.input + 1))


def find(
    inputs: Sequence[str], split: str, column: str = "text", data_dir: PathLike | None = None
) -> list[Input]:
    """Returns the inputs that are meant, the files of a pattern in the order of their names.

    Args:
      inputs: files, patterns of them ("**" for any depth), and "tfds:NAME".
      split: what to read of a TFDS dataset, in its slicing syntax.
      column: the field of JSON, or the feature of TFDS, that holds the text.
      data_dir: where TFDS datasets are.

    Raises:
      DataError: nothing is there.
    """
    found: list[Input] = []
    for given in inputs:
        if given.startswith(_TFDS):
            found.append(TfdsSplit(given.removeprefix(_TFDS), split, column, data_dir))
            continue
        path = expanded(given, "input")
        files = [path] if path.exists() else map(pathlib.Path, _matches(path))
        found += [_file(file, column) for file in files]
    return found


def is_tfds(given: str) -> bool:
    """Says whether an input is a dataset of TFDS."""
    return given.startswith(_TFDS)


def tfds_splits(given: str, data_dir: PathLike | None) -> list[str]:
    """Returns the names of the splits of "tfds:NAME"."""
    return list(Tfds(given.removeprefix(_TFDS)).shards(data_dir))


def read(inputs: Sequence[Input], start: Position, cut: bool) -> Iterator[Piece]:
    """Yields the pieces of all inputs from `start` on; see `Input.pieces`."""
    for number in range(start.input, len(inputs)):
        yield from inputs[number].pieces(start, cut)
        start = Position(number + 1)


def _matches(path: pathlib.Path) -> list[str]:
    names = sorted(glob.glob(str(path), recursive=True))
    names = [name for name in names if pathlib.Path(name).is_file()]
    if not names:
        near = [file.name for file in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(
            f"input {str(path)!r}: no such file, and no file matches.{nearest(path.name, near)}"
        )
    return names


def _file(path: pathlib.Path, column: str) -> Input:
    if path.is_dir():
        raise DataError(f"input {str(path)!r} is a folder; give its files, as '{path}/*'.")
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return JsonLines(path, column) if kind in _JSON else TextFile(path)


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """The content of a file, unpacked; a DataError where it cannot be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"input {path} cannot be read: {reason}.") from error


def _pieces(
    text: str, here: Position, following: Position, cut: bool, name: str
) -> Iterator[Piece]:
    """The rest of a document that is in memory, from `here.inside` on."""
    limit, inside = PIECE if cut else WHOLE, here.inside
    while len(text) - inside > limit:
        part = text[inside : inside + limit + 1]
        part = part[: _seam(part, cut, name)]
        inside += len(part)
        yield Piece(part, False, here._replace(inside=inside))
    yield Piece(text[inside:], True, following)


def _seam(text: str, cut: bool, name: str) -> int:
    """Where to cut a text: before the last white space after a letter, else before its end.

    There, every pre-tokenizer of the byte-level BPEs (GPT-2, Llama 3, Qwen) begins a new word.
    """
    if not cut:
        raise DataError(
            f"{name} holds a document of more than {WHOLE >> 20} million characters, and this "
            "tokenizer encodes only whole documents; divide it."
        )
    # The last seam is hardly ever further back; to look through it all takes 100 times as long.
    for start in (max(0, len(text) - 4096), 0):
        ends = [match.end() for match in _SEAM.finditer(text, start)]
        if ends:
            return ends[-1]
    # No word ends anywhere (Chinese, base64): a cut through it, whose sides are encoded apart.
    return len(text) - 1
