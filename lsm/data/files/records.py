"""Files that are read record by record: TFRecord, whose records are tf.train.Example, and lines."""

import gzip
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm.data.files import crc32c
from lsm.data.files.parts import Part, objects, readable
from lsm.errors import DataError

_PROBED = 256  # records that tell the features and which of them are single values
_DTYPES = {"int64_list": np.int64, "float_list": np.float32, "bytes_list": object}


class TfRecords(Part):
    """A TFRecord file: records of length, checksum of it, content, checksum of that.

    Checksums of all lengths are compared when it is opened, of a content when that is read.
    """

    def __init__(self, file: pathlib.Path):
        super().__init__(file)
        with readable(file):
            self._content = _mapped(file)
            self._starts, self._sizes = self._frames()
            probed = self._parsed(range(min(_PROBED, len(self))))
        lists = [{name: len(_values(f)) for name, f in record.items()} for record in probed]
        self.names = sorted({name for record in lists for name in record})
        self._single = {n for n in self.names if all(record.get(n, 1) == 1 for record in lists)}

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
        """See `Part.read`."""
        with readable(self.file):
            records = self._parsed(np.asarray(rows).tolist())
            if not records:
                return {name: np.zeros(0, np.float32) for name in names}
            return {name: self._column(name, records, rows) for name in names}

    def _column(self, name: str, records: Sequence[Any], rows: np.ndarray) -> np.ndarray:
        lists = [_values(record[name]) if name in record else () for record in records]
        for row, values in zip(rows, lists, strict=True):
            if not len(values):
                raise DataError(
                    f"{self.row(row)}: feature {name!r} has no value; leave it out of columns."
                )
        kinds = {record[name].WhichOneof("kind") for record in records}
        if len(kinds) > 1:
            raise DataError(f"{self.file}: feature {name!r} is now {' and now '.join(kinds)}.")
        dtype = _DTYPES[kinds.pop()]
        lengths = {len(values) for values in lists}
        if len(lengths) > 1:
            return objects([np.array(list(values), dtype) for values in lists])
        flat = [value for values in lists for value in values]
        single = name in self._single and lengths == {1}
        if dtype is object:
            return objects(flat if single else [objects(values) for values in lists])
        column = np.array(flat, dtype)
        return column if single else column.reshape(len(lists), -1)

    def _parsed(self, rows: Sequence[int]) -> list[Any]:
        """The features by name of records, whose checksums are compared."""
        from tensorflow_datasets.proto import tf_example_pb2

        starts = [int(self._starts[row]) for row in rows]
        stops = [int(self._starts[row] + self._sizes[row]) for row in rows]
        pieces = [self._content[a:b] for a, b in zip(starts, stops, strict=True)]
        stored = [self._content[stop : stop + 4].view("<u4")[0] for stop in stops]
        for row, wrong in zip(rows, crc32c.masked(pieces) != stored, strict=True):
            if wrong:
                raise DataError(f"{self.row(row)} is damaged: its checksum is another.")
        parse = tf_example_pb2.Example.FromString
        return [dict(parse(piece.tobytes()).features.feature) for piece in pieces]

    def _frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the records' contents begin, and their sizes."""
        starts, sizes, place, end = [], [], 0, len(self._content)
        while place < end:
            head = self._content[place : place + 12]
            size = struct.unpack_from("<Q", head)[0] if len(head) == 12 else end
            if len(head) < 12 or place + 16 + size > end:
                break
            starts.append(place + 12)
            sizes.append(size)
            place += 16 + size
        places = np.array(starts, np.int64)
        heads = self._content[places[:, None] + np.arange(-12, 0)] if starts else np.zeros((0, 12))
        stored = np.ascontiguousarray(heads[:, 8:]).view("<u4").reshape(-1)
        wrong = np.flatnonzero(crc32c.masked(list(heads[:, :8])) != stored)
        if len(wrong):
            raise DataError(f"{self.row(wrong[0])} is damaged: the checksum of its length differs.")
        # After the lengths before it: behind a wrong one, everything is.
        if place < end:
            raise DataError(f"{self.row(len(starts))} is cut off, or damaged.")
        return places, np.array(sizes, np.int64)


class Lines(Part):
    """A text file in UTF-8, gzipped or not: column "text", a line with its end an example."""

    names = ("text",)

    def __init__(self, file: pathlib.Path):
        super().__init__(file)
        with readable(file):
            self.held = file.suffix == ".gz"
            packed = file.read_bytes() if self.held else b""
            text = gzip.decompress(packed) if self.held else b""
            self._content = np.frombuffer(text, np.uint8) if self.held else _mapped(file)
            self._stops = _line_ends(self._content)

    def __len__(self) -> int:
        return len(self._stops)

    def read(self, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
        """See `Part.read`."""
        return {name: objects([self._line(int(row)) for row in rows]) for name in names}

    def _line(self, row: int) -> str:
        start = int(self._stops[row - 1]) if row else 0
        try:
            return self._content[start : int(self._stops[row])].tobytes().decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.row(row)} is not UTF-8 text: {error.reason} at byte "
                f"{start + error.start:,}."
            ) from None


def _line_ends(content: np.ndarray) -> np.ndarray:
    """Where lines end, behind the newline; the last may have none."""
    some = 1 << 24  # bytes looked at together: a comparison makes as many
    ends = [start + np.flatnonzero(content[start : start + some] == 10) + 1
            for start in range(0, len(content), some)]  # fmt: skip
    if len(content) and content[-1] != 10:
        ends.append(np.array([len(content)]))
    return np.concatenate([np.zeros(0, np.int64), *ends])


def _mapped(file: pathlib.Path) -> np.ndarray:
    # There is no map of nothing.
    size = file.stat().st_size
    return np.asarray(np.memmap(file, np.uint8, "r")) if size else np.zeros(0, np.uint8)


def _values(feature: Any) -> Any:
    kind = feature.WhichOneof("kind")
    return getattr(feature, kind).value if kind else ()
