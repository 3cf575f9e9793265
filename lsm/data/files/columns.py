"""Columns as they are delivered, made of those of files: joined, numbered, decoded, in 32 bits."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lsm.data import images
from lsm.data.files.parts import Part, objects
from lsm.data.values import common, first_word, narrowed
from lsm.errors import DataError, shortened

PROBED = 256
"""Rows that tell the shape of a column."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column that is delivered.

    Attributes:
      name: of it.
      sources: columns of the files; several are put side by side, in float32.
      one_hot: column of several -> value -> its place, where the values are names of classes.
      one: shape and dtype of an example; dtype object for texts, and for what differs in shape.
      numbers: value -> number of its class, where the values are labels.
      channels: of the pictures that the values are when decoded, or None.
      size: (height, width) that pictures are resized to, or None.
    """

    name: str
    sources: str | tuple[str, ...]
    one_hot: Mapping[str, Mapping[Any, int]] = dataclasses.field(default_factory=dict)
    one: jax.ShapeDtypeStruct | None = None
    numbers: Mapping[Any, int] | None = None
    channels: int | None = None
    size: tuple[int, int] | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns of the files."""
        return (self.sources,) if isinstance(self.sources, str) else self.sources

    def seen(self, stored: Mapping[str, np.ndarray], part: Part, rows: np.ndarray) -> "Column":
        """Returns the column with the shape and dtype of what `part` has stored at `rows`."""
        values = self._joined(stored, part, rows)
        if values.dtype == object and len(values) and isinstance(values[0], bytes):
            channels = _channels(values[0])
            if channels:
                sizes = {_size(value) for value in values} if self.size is None else {self.size}
                shape = (*sizes.pop(), channels) if len(sizes) == 1 else ()
                one = jax.ShapeDtypeStruct(shape, np.uint8 if shape else object)
                return dataclasses.replace(self, channels=channels, one=one)
        shape = () if values.dtype == object else values.shape[1:]
        one = jax.ShapeDtypeStruct(shape, narrowed(values[:0], "").dtype)
        return dataclasses.replace(self, one=one)

    def made(self, stored: Mapping[str, np.ndarray], part: Part, rows: np.ndarray) -> np.ndarray:
        """Returns the column (N, ...) of what `part` has stored at `rows`.

        Raises:
          DataError: a value is not as the first ones were; names file and row.
        """
        values = self._joined(stored, part, rows)
        if self.channels:
            values = self._decoded(values, part, rows)
        if self.one.dtype == object:
            return values if values.dtype == object else objects(list(values))
        if values.dtype == object or values.shape[1:] != self.one.shape:
            self._tell_other(values, part, rows)
        try:
            narrow = narrowed(values, self.name)
        except DataError as error:
            raise DataError(f"{part.file}: {error}") from None
        whole_to_float = narrow.dtype.kind in "iu" and self.one.dtype.kind == "f"
        if not whole_to_float and not np.can_cast(narrow.dtype, self.one.dtype, "safe"):
            raise DataError(
                f"{part.file}: column {self.name!r} is {narrow.dtype}, and {self.one.dtype} in the "
                "file before; one type is needed."
            )
        return narrow.astype(self.one.dtype, copy=False)

    def _joined(self, stored: Mapping[str, np.ndarray], part: Part, rows: np.ndarray) -> np.ndarray:
        if isinstance(self.sources, str):
            values = stored[self.sources]
            return (
                values
                if self.numbers is None
                else _places(values, self.numbers, self.name, part, rows)
            )
        beside = [self._beside(name, stored[name], part, rows) for name in self.sources]
        return np.concatenate(beside, axis=-1)

    def _beside(self, name: str, values: np.ndarray, part: Part, rows: np.ndarray) -> np.ndarray:
        """What is put side by side of a column `name`: float32 (N, 1), or (N, classes)."""
        if name in self.one_hot:
            numbers = self.one_hot[name]
            return one_hot(_places(values, numbers, name, part, rows), len(numbers))
        if values.dtype == object or values.ndim > 1:
            raise DataError(
                f"{part.file}: column {name!r} is {_kind(values)}{_word(part, name)}; only single "
                f"numbers can be joined in {self.name!r}, and what is in labels."
            )
        return values.astype(np.float32)[:, None]

    def _decoded(self, values: np.ndarray, part: Part, rows: np.ndarray) -> np.ndarray:
        try:
            decoded = images.decode_all(list(values), self.channels, self.size)
        except ValueError:
            decoded = [self._picture(*one, part) for one in zip(values, rows, strict=True)]
        same = len({picture.shape for picture in decoded}) == 1
        return np.stack(decoded) if same else objects(decoded)

    def _picture(self, value: bytes, row: int, part: Part) -> np.ndarray:
        try:
            return images.decode(value, self.channels, self.size)
        except ValueError as error:
            raise DataError(
                f"{part.row(row)}: picture {self.name!r} cannot be read: {error}."
            ) from error

    def _tell_other(self, values: np.ndarray, part: Part, rows: np.ndarray) -> None:
        """Raises the DataError of the first value whose shape is another."""
        shapes = [np.shape(value) if _is_number(value) else None for value in values]
        at = next((i for i, shape in enumerate(shapes) if shape != self.one.shape), 0)
        advice = "set size." if self.channels else "leave it out of columns."
        where, kind = part.row(rows[at]), _kind(values[at : at + 1])
        if isinstance(values[at], str):  # of a table: it is another row that made it text
            where, kind = part.file, kind + _word(part, self.needed[0])
        raise DataError(
            f"{where}: column {self.name!r} is {kind}, and {self.one.shape} {self.one.dtype} in "
            f"the first rows; {advice}"
        )


def probed(columns: Sequence[Column], parts: Sequence[Part]) -> list[Column]:
    """Returns columns with what the first rows of `parts` say of their shapes and dtypes."""
    needed = tuple(dict.fromkeys(name for column in columns for name in column.needed))
    found = []
    for part in parts:
        rows = np.arange(min(PROBED, len(part)))
        stored = part.read(needed, rows)
        found.append([column.seen(stored, part, rows) for column in columns])
    return [_widest(seen) for seen in zip(*found, strict=True)]


def _widest(seen: Sequence[Column]) -> Column:
    """One column of those of several files: whole numbers in one may be fractions in another."""
    first, dtypes = seen[0], [column.one.dtype for column in seen]
    if first.channels or any(dtype.kind == "O" for dtype in dtypes):
        return first  # and what is another kind is told of when it is read
    one = jax.ShapeDtypeStruct(first.one.shape, common(first.name, *dtypes))
    return dataclasses.replace(first, one=one)


def numbered(values: np.ndarray, name: str) -> dict[Any, int]:
    """Returns value -> its number, for labels (N,), sorted: texts, whole numbers or truths.

    Raises:
      DataError: they are of another kind.
    """
    kinds = set(values.tolist()) if values.ndim == 1 else {None}
    if not any(all(isinstance(v, kind) for v in kinds) for kind in (str, bytes, int)):
        told = "both texts and bytes" if {str, bytes} == {*map(type, kinds)} else _kind(values)
        raise DataError(f"labels: column {name!r} holds {told}; texts or whole numbers are needed.")
    if empty := kinds & {"", b""}:
        row = values.tolist().index(empty.pop()) + 1
        raise DataError(f"labels: column {name!r} is empty in row {row:,}; a class is needed.")
    return {value: number for number, value in enumerate(sorted(kinds))}


def one_hot(numbers_N: np.ndarray, classes: int) -> np.ndarray:
    """Returns float32 (N, classes): 1 at the number of each, else 0."""
    made = np.zeros((len(numbers_N), classes), np.float32)
    made[np.arange(len(numbers_N)), numbers_N] = 1
    return made


def class_name(value: Any) -> str:
    """Returns the name of a class whose label is `value`."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _places(
    values: np.ndarray, numbers: Mapping[Any, int], name: str, part: Part, rows: np.ndarray
) -> np.ndarray:
    """The numbers (N,) of labels."""
    found = [numbers.get(value, -1) for value in values.tolist()]
    if -1 in found:
        at = found.index(-1)
        raise DataError(
            f"{part.row(rows[at])}: {values[at]!r} is none of the classes of {name!r}; the file "
            "has changed."
        )
    return np.array(found, np.int32)


def _kind(values: np.ndarray) -> str:
    if values.dtype == object and len(values) and not isinstance(values[0], np.ndarray):
        return "text" if isinstance(values[0], str) else type(values[0]).__name__
    if values.dtype == object and len(values):
        return f"{values[0].shape} {values[0].dtype}"
    return f"{values.shape[1:]} {values.dtype}"


def _word(part: Part, name: str) -> str:
    """Says which row of a column made it text."""
    values = part.read((name,), np.arange(len(part)))[name]
    at = first_word(values)
    return "" if at is None else f": row {part.first + at + 1:,} holds {shortened(values[at])!r}"


def _is_number(value: Any) -> bool:
    return not isinstance(value, str | bytes)


def _channels(content: bytes) -> int | None:
    """1 for a grey picture and 3 for another; None where the bytes are no picture."""
    from PIL import Image

    # Told by how they begin: Pillow takes some bytes that mean nothing for a picture.
    if not content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"RIFF")):
        return None
    try:
        with Image.open(io.BytesIO(content)) as image:
            return 1 if image.mode in ("1", "L") or image.mode.startswith("I;16") else 3
    except OSError:
        return None


def _size(content: bytes) -> tuple[int, int] | None:
    try:
        return images.size_of(content)
    except ValueError:  # told of, with its row, when it is decoded
        return None
