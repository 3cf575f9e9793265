"""Tables by Apache Arrow: CSV, TSV, JSON lines, Parquet, and Arrow files as `datasets` saves them.

CSV and JSON lines are parsed whole, in one block, so that a type is that of all values; Arrow files
are mapped into memory, and of Parquet one row group is read at a time.
"""

import functools
import gzip
import json
import pathlib
import re
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lsm.data.files.parts import Part, needs, objects, readable, stamp
from lsm.errors import DataError, shortened

_BLOCK = 2**31 - 1  # bytes, the most that Arrow parses at once
_HEADER = 1 << 20  # bytes, more than any header has
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_MISSING = ["", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None"]  # "nan" is a number
_reading = threading.Lock()
# Tables that are in use: of one file that is opened for several splits there is one.
_parsed_tables: weakref.WeakValueDictionary[Any, Part] = weakref.WeakValueDictionary()


def open_table(file: pathlib.Path, ending: str) -> list[Part]:
    """Returns the parts of a table; one without rows has one part.

    Raises:
      DataError: it cannot be read, or two columns have one name.
    """
    needs("pyarrow", "tables", file)
    with readable(file):
        if ending == ".parquet":
            return _row_groups(file)
        if ending in (".arrow", ".feather"):
            return _batches(file, _mapped(file), held=False)
        key = file.resolve(), stamp(file)
        if part := _parsed_tables.get(key):
            return [part]
        parts = _batches(file, _parsed(file, ending).combine_chunks(), held=True)
        if len(parts) == 1:  # more only where texts are beyond 2 GiB
            _parsed_tables[key] = parts[0]
        return parts


def _batches(file: pathlib.Path, table: Any, held: bool) -> list[Part]:
    names, classes = _names(file, table.schema), _classes(table.schema)
    batches = table.to_batches() or [_empty(table.schema)]
    firsts = np.cumsum([0, *(batch.num_rows for batch in batches)]).tolist()
    return [
        _Batch(file, first, names, classes, batch, held)
        for first, batch in zip(firsts, batches, strict=False)
    ]


class _Batch(Part):
    """A record batch, in memory or mapped."""

    def __init__(
        self,
        file: pathlib.Path,
        first: int,
        names: Sequence[str],
        classes: Mapping[str, tuple[str, ...]],
        batch: Any,
        held: bool,
    ):
        super().__init__(file)
        self.first, self.names, self.classes, self.held = first, names, dict(classes), held
        self._batch = batch

    def __len__(self) -> int:
        return self._batch.num_rows

    def read(self, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
        """See `Part.read`."""
        with readable(self.file):
            if not self.held:
                self._check(names, rows)
            return _columns(self, self._batch, names, rows)

    def _check(self, names: Sequence[str], rows: np.ndarray) -> None:
        """Raises ArrowInvalid where these rows are damaged: Arrow would read beyond the map."""
        batch = self._batch.select(list(names))
        together = len(rows) and (np.diff(rows) == 1).all()
        for start, count in [(rows[0], len(rows))] if together else [(row, 1) for row in rows]:
            batch.slice(int(start), count).validate(full=True)


class _RowGroup(Part):
    """A row group of a Parquet file."""

    def __init__(self, metadata: Any, number: int, first: int, like: _Batch):
        super().__init__(like.file)
        self.first, self.names, self.classes = first, like.names, like.classes
        self._metadata, self._number = metadata, number
        self._length = metadata.row_group(number).num_rows

    def __len__(self) -> int:
        return self._length

    def read(self, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
        """See `Part.read`."""
        with readable(self.file):
            with _reading:  # else threads that want the same group would each read it
                table = _group(self, tuple(names))
            return _columns(self, table, names, rows)

    def whole(self, names: Sequence[str]) -> Any:
        """Returns these columns of all rows, as an Arrow table in one piece."""
        import pyarrow.parquet as pq

        # Opened each time: of many files, not all can be open.
        with pq.ParquetFile(self.file, memory_map=True, metadata=self._metadata) as file:
            return file.read_row_group(self._number, columns=list(names)).combine_chunks()


@functools.lru_cache(maxsize=4)
def _group(group: _RowGroup, names: tuple[str, ...]) -> Any:
    return group.whole(names)


def _row_groups(file: pathlib.Path) -> list[Part]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as whole:
        schema, metadata = whole.schema_arrow, whole.metadata
    empty = _Batch(file, 0, _names(file, schema), _classes(schema), _empty(schema), held=False)
    parts, first = [], 0
    for number in range(metadata.num_row_groups):
        parts.append(_RowGroup(metadata, number, first, empty))
        first += len(parts[-1])
    return parts or [empty]


def _mapped(file: pathlib.Path) -> Any:
    import pyarrow as pa

    source = pa.memory_map(str(file))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:  # a stream, which is what `datasets` writes
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


def _parsed(file: pathlib.Path, ending: str) -> Any:
    if not file.stat().st_size:
        raise DataError(f"{file} is empty.")
    if ending in _SEPARATORS:
        _check_separator(file, ending)
    table = _told(file, ending, {})
    # A date may be written in many ways: as text it stays what stands there.
    dates = {x.name: text for x in table.schema if (text := _as_text(x.type)) is not None}
    table = _told(file, ending, dates) if dates else table
    for name, column in zip(table.column_names, table.columns, strict=True):
        if str(column.type) == "binary":  # what Arrow takes a text for that is not UTF-8
            row = next(i for i, text in enumerate(column.to_pylist()) if not _is_utf8(text))
            raise DataError(f"{file} row {row + 1:,}: column {name!r} is not UTF-8 text.")
    return table


def _check_separator(file: pathlib.Path, ending: str) -> None:
    """Raises DataError where the header is one name that holds what others separate by."""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as content:
        header = content.readline(_HEADER).decode(errors="replace").strip("\ufeff\r\n")
    own = _SEPARATORS[ending]
    found = [other for other in (";", "\t", ",") if other in header]
    if own not in header and found:
        kind = next((e for e, separator in _SEPARATORS.items() if separator == found[0]), None)
        remedy = f"name it {kind}" if kind else f"write it with {own!r} between values"
        raise DataError(
            f"{file}: its header is one column, {shortened(header)!r}; it looks separated by "
            f"{found[0]!r}, and {ending} is by {own!r}: {remedy}."
        )


def _told(file: pathlib.Path, ending: str, types: Mapping[str, str]) -> Any:
    """The table; an error counts rows as we do: from 1, and no header."""
    import pyarrow as pa

    try:
        return _read(file, ending, types)
    except pa.ArrowInvalid as error:
        text = re.sub(r"Row #(\d+)", lambda row: f"row {int(row[1]) - 1}", str(error))
        text = re.sub(r"in row (\d+)", lambda row: f"in row {int(row[1]) + 1}", text)
        raise DataError(f"{file} cannot be read: {' '.join(text.split()).rstrip('.')}.") from error


def _is_utf8(text: bytes | None) -> bool:
    try:
        return text is None or text.decode() is not None
    except UnicodeDecodeError:
        return False


def _read(file: pathlib.Path, ending: str, types: Mapping[str, str]) -> Any:
    import pyarrow as pa
    from pyarrow import csv
    from pyarrow import json as lines

    # One thread: only then errors of a CSV file name the row.
    how = {"use_threads": False, "block_size": _block(file)}
    if ending not in _SEPARATORS:
        schema = pa.schema(list(types.items()))
        return lines.read_json(
            file,
            lines.ReadOptions(**how),
            lines.ParseOptions(explicit_schema=schema, newlines_in_values=True),
        )
    return csv.read_csv(
        file,
        csv.ReadOptions(**how),
        # Between tabs a quote is a sign as any other, as in GLUE's files: no value holds a tab.
        csv.ParseOptions(
            delimiter=_SEPARATORS[ending],
            quote_char='"' if ending == ".csv" else False,
            newlines_in_values=ending == ".csv",
        ),
        csv.ConvertOptions(null_values=_MISSING, column_types=dict(types)),
    )


def _block(file: pathlib.Path) -> int:
    """Bytes of a block that holds all of the file."""
    if file.suffix != ".gz":
        return min(_BLOCK, file.stat().st_size + 1)
    return _BLOCK


def _as_text(kind: Any) -> Any | None:
    """The type that reads dates, or lists of them, as the texts that they are; None of others."""
    import pyarrow as pa

    if pa.types.is_list(kind):
        inner = _as_text(kind.value_type)
        return None if inner is None else pa.list_(inner)
    return pa.string() if pa.types.is_temporal(kind) else None


def _empty(schema: Any) -> Any:
    import pyarrow as pa

    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _names(file: pathlib.Path, schema: Any) -> list[str]:
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DataError(f"{file}: column {twice[0]!r} is there twice; give each its own name.")
    return schema.names


def _classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """Names of classes that the `datasets` library keeps in the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: tuple(feature["names"])
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError):
        return {}


def _columns(
    part: Part, table: Any, names: Sequence[str], rows: np.ndarray
) -> dict[str, np.ndarray]:
    import pyarrow as pa

    indices = pa.array(np.asarray(rows, np.int64))
    taken = {name: table.column(name).take(indices) for name in names}
    columns = {}
    for name, column in taken.items():
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if column.null_count:
            gap = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError(
                f"{part.row(rows[gap])}: column {name!r} has no value; fill it in, or leave the "
                "row out, or the column out of columns."
            )
        columns[name] = _to_numpy(column, f"{part.file} column {name!r}")
    return columns


def _to_numpy(array: Any, where: str) -> np.ndarray:
    """The values (N, ...) of an Arrow array; dtype object for texts and for lists that differ."""
    import pyarrow as pa

    types, kind = pa.types, array.type
    if array.null_count:  # within a list; or of a picture, of which there is the path alone
        raise DataError(f"{where}: a value within a value is missing; leave it out of columns.")
    if isinstance(kind, pa.BaseExtensionType):
        return _to_numpy(array.storage, where)
    if types.is_dictionary(kind):
        return _to_numpy(array.dictionary_decode(), where)
    if types.is_decimal(kind):
        return _to_numpy(array.cast(pa.float64()), where)
    if types.is_temporal(kind):
        return _to_numpy(array.cast(pa.string()), where)
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        return array.to_numpy(zero_copy_only=False)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _lists(array, where)
    # A picture of `datasets`: its bytes, and the name of a file where they are not there.
    if types.is_struct(kind) and {"bytes", "path"} == {field.name for field in kind}:
        return _to_numpy(array.field("bytes"), where)
    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    if any(is_one(kind) for is_one in texts) or types.is_fixed_size_binary(kind):
        return objects(array.to_pylist())
    raise DataError(f"{where} holds {kind}, which becomes no array; leave it out of columns.")


def _lists(array: Any, where: str) -> np.ndarray:
    import pyarrow.compute as pc

    lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
    values = _to_numpy(array.flatten(), where)
    if values.dtype != object and len(set(lengths.tolist())) == 1:
        return values.reshape(len(array), int(lengths[0]), *values.shape[1:])
    return objects(np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else [])
