"""What a model reads, as data: kept with a run, so that it can be asked without the data."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lsm.data import images
from lsm.data.dataset import Dataset, Spec
from lsm.data.files.columns import class_name, one_hot
from lsm.data.texts.codec import CharacterCodec
from lsm.data.texts.encoder import LENGTH, Encoder
from lsm.data.transforms import IMAGE, Transform, changed
from lsm.data.transforms.base import image_of
from lsm.errors import DataError, listed, nearest, shortened

Lengths = np.ndarray
"""(N,) int, of each row how much of it is not padding."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What an example is, and how files and texts become such.

    Attributes:
      columns: shape and dtype of one example of each column.
      classes: names of what the labels number, or None.
      characters: what tokens number, in order; None unless tokens are characters.
      names: of what the numbers of a column stand for, by column.
      joined: column -> what stands side by side in it, where classes in `names` are among that.
      encoder: what makes columns of texts; None without such.
      decoded: size (height, width) of pictures before `evaluate`; None is their own.
      evaluate: what pictures of files go through, as those of an evaluation do; kept with the
        experiment, and not in JSON.
      special: whether the name of a special token in a text that is asked is that token, as where
        [MASK] is to be filled; else it is text as any other.
    """

    columns: Spec
    classes: tuple[str, ...] | None = None
    characters: str | None = None
    names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    encoder: Encoder | None = None
    decoded: tuple[int, ...] | None = None
    evaluate: tuple[Transform, ...] = ()
    special: bool = False

    @classmethod
    def of(cls, dataset: Dataset, evaluate: tuple[Transform, ...] = ()) -> "Inputs":
        """Returns what the examples of a dataset are, after the changes that evaluation makes."""
        columns, decoded = dict(dataset.spec), None
        if evaluate:
            decoded = image_of(evaluate[0], columns).shape[:2] or None
            made = changed(dataset.by_example().take(np.arange(1)), evaluate)[IMAGE]
            columns[IMAGE] = jax.ShapeDtypeStruct(made.shape[1:], made.dtype)
        known = (dataset.classes, dataset.characters, dataset.names, dict(dataset.joined))
        return cls(columns, *known, dataset.encoder, decoded, evaluate)

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON, without `Encoder.tokenizer`, which is a file of its own."""
        columns = {name: [list(x.shape), str(x.dtype)] for name, x in self.columns.items()}
        fields = ("classes", "characters", "names", "joined", "decoded")
        tree = {"columns": columns} | {name: getattr(self, name) for name in fields}
        if self.encoder is not None:
            tree["texts"] = self.encoder.to_json()
        return tree | ({"special": True} if self.special else {})

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], tokenizer: str | None = None) -> "Inputs":
        """Returns what `to_json` wrote; raises KeyError, TypeError or ValueError for other JSON."""
        columns = {
            name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
            for name, (shape, dtype) in tree["columns"].items()
        }
        classes = None if tree["classes"] is None else tuple(tree["classes"])
        # Earlier versions kept neither names nor sizes.
        names, joined = (
            {name: tuple(of) for name, of in tree.get(field, {}).items()}
            for field in ("names", "joined")
        )
        decoded = tree.get("decoded") and tuple(tree["decoded"])
        encoder = tokenizer and Encoder.from_json(tree["texts"], tokenizer)
        known = (columns, classes, tree["characters"], names, joined, encoder, decoded)
        return cls(*known, special=tree.get("special", False))

    def called(self, task: Any) -> Sequence[str] | None:
        """Returns the names of what a task predicts by number; None where they are not known.

        Of several columns with names, it is the one that the task's field `label` says. A task
        without such a field predicts tokens where there are texts (`TokenNames`, which decode).
        """
        label = getattr(task, "label", None)
        if self.characters is not None:
            return self.characters
        if self.encoder is not None and label is None:
            return self.encoder.names
        return self.names.get(label) if self.names and isinstance(label, str) else self.classes

    def kind(self, column: str) -> str:
        """Returns what a column's values are made of: "pictures", "texts" or "numbers"."""
        one = self.columns[column]
        if self.encoder is not None and column in self.encoder.columns:
            return "texts"
        if one.dtype == np.uint8 and len(one.shape) == 3 and one.shape[-1] in images.CHANNELS:
            return "pictures"
        if self.characters is not None and len(one.shape) == 1:
            return "texts"
        return "numbers"

    def read(self, column: str, values: Any) -> tuple[np.ndarray, Lengths | None]:
        """Returns values of a column as the model reads them, (N, ...), and the lengths of texts.

        Args:
          column: one of `columns`.
          values: numbers (N, ...); or, by `kind`, the path of a picture or several, which become
            of the column's size and colours; or a text or several, which are padded to the longest
            or to a bucket; of a column made of two texts, pairs of str;
            or, of a column in `names`, such a name or several, which become its numbers; or, of
            one in `joined`, rows (N, k) of what stands side by side there, in that order.

        Raises:
          DataError: they are of another kind or shape, damaged, or hold an unknown character or
            name.
        """
        kind = self.kind(column)
        if self._encodes(column, values):
            columns = self._encoded(column, values)
            return columns[column], columns[column + LENGTH]
        if column in self.joined and not self._is_made(column, values):
            return self._beside(column, values), None
        if isinstance(values, np.ndarray) and values.dtype.kind in "OU":
            values = values.tolist()
        if isinstance(values, str | os.PathLike):
            values = [values]
        named = isinstance(values, Sequence) and values and isinstance(values[0], str | os.PathLike)
        if not named:
            return self._numbers(column, values), None
        if kind == "pictures":
            return self._pictures(column, [pathlib.Path(path) for path in values]), None
        if kind == "texts":
            return self._texts(column, values)
        if column in self.names:
            return self._numbered(column, values), None
        raise DataError(
            f"predict: {values[0]!r} given for column {column!r}, which holds numbers of shape "
            f"{self.columns[column].shape}; an array (N, ...) of them is needed."
        )

    def asked(self, column: str, values: Any) -> tuple[dict[str, np.ndarray], Lengths | None]:
        """Returns a column as `read` does, with those beside it that `encoder` makes of texts."""
        if self._encodes(column, values):
            columns = self._encoded(column, values)
            return columns, columns[column + LENGTH]
        found, lengths = self.read(column, values)
        return {column: found}, lengths

    def known(self, column: str, values: Any) -> dict[str, Any]:
        """Returns any column by name: of texts what `asked` does, else itself as it is."""
        return self._encoded(column, values) if self._encodes(column, values) else {column: values}

    def is_pair(self, column: str) -> bool:
        """Says whether an example of a column is made of two texts."""
        return self.encoder is not None and len(self.encoder.columns.get(column, ())) == 2

    def _encodes(self, column: str, values: Any) -> bool:
        known = self.encoder is not None and column in self.encoder.columns
        return known and _are_texts(values)

    def _is_made(self, column: str, values: Any) -> bool:
        try:
            found = np.asarray(values)
        except ValueError:  # of rows of different lengths
            return False
        shape = self.columns[column].shape
        # As wide as a row of its parts, each class the only one of its kind: then it is that row.
        as_row = shape == (len(self.joined[column]),)
        return found.dtype.kind in "biuf" and found.shape[1:] == shape and not as_row

    def _beside(self, column: str, rows: Any) -> np.ndarray:
        rows = rows if isinstance(rows, list | tuple) else np.asarray(rows, object).tolist()
        parts = self.joined[column]
        for row in rows if isinstance(rows, list | tuple) else [rows]:
            if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != len(parts):
                raise DataError(
                    f"predict: {shortened(repr(row))} given for column {column!r}; a row of "
                    f"{listed(parts)} is needed."
                )
        made = [self._one_of(part, [row[k] for row in rows]) for k, part in enumerate(parts)]
        return np.concatenate(made, axis=-1)

    def _one_of(self, part: str, values: Sequence[Any]) -> np.ndarray:
        """What a joined column has of one of its parts: float32 (N, 1), or (N, classes)."""
        if part in self.names:
            # NumPy makes 3.0 of a whole number that it has beside a fraction.
            whole = (int(x) if isinstance(x, float) and x.is_integer() else x for x in values)
            numbers = self._numbered(part, [class_name(value) for value in whole])
            return one_hot(numbers, len(self.names[part]))
        for value in values:
            try:
                float(value)
            except (TypeError, ValueError):
                raise DataError(
                    f"predict: column {part!r} holds {value!r}; numbers are needed."
                ) from None
        return np.array(values, np.float32)[:, None]

    def _numbers(self, column: str, values: Any) -> np.ndarray:
        try:
            found = np.asarray(values)
        except ValueError as error:  # of rows of different lengths
            raise DataError(f"predict: column {column!r}: {error}.") from error
        one = self.columns[column]
        if one.dtype != object and found.dtype.kind not in "biuf":
            raise DataError(
                f"predict: {found.dtype} given for column {column!r}; numbers are needed."
            )
        if one.dtype != object and found.shape[1:] != one.shape:
            raise DataError(
                f"predict: an array of shape {found.shape} given for column {column!r}; "
                f"(N, {', '.join(map(str, one.shape))}) is needed.".replace(", )", ",)")
            )
        whole = np.issubdtype(found.dtype, np.integer) and np.issubdtype(one.dtype, np.floating)
        # A classifier would take whole numbers for pixels, and divide them by 255.
        return found.astype(one.dtype) if whole else found

    def _numbered(self, column: str, values: Sequence[str]) -> np.ndarray:
        numbers = {name: number for number, name in enumerate(self.names[column])}
        for value in values:
            if value not in numbers:
                raise DataError(
                    f"predict: column {column!r} holds {value!r}, which the run does not know; "
                    f"allowed: {listed(numbers)}.{nearest(str(value), numbers)}"
                )
        return np.array([numbers[value] for value in values], np.int32)

    def _pictures(self, column: str, paths: Sequence[pathlib.Path]) -> np.ndarray:
        pictures = images.ragged([self._picture(column, path) for path in paths])
        return np.stack(changed({IMAGE: pictures}, self.evaluate)[IMAGE])

    def _picture(self, column: str, path: pathlib.Path) -> np.ndarray:
        *size, channels = self.columns[column].shape
        try:
            return images.decode(path, channels, self.decoded if self.evaluate else tuple(size))
        except ValueError as error:
            raise DataError(f"picture {path} cannot be read: {error}.") from error

    def _encoded(self, column: str, values: Any) -> dict[str, np.ndarray]:
        """A column of texts, or of pairs of them, which `encoder` knows, with those beside it."""
        pair = self.is_pair(column)
        one = isinstance(values, str) or (pair and _is_pair(values))
        texts = [values] if one else list(values)
        for text in texts:
            parts = text if pair and isinstance(text, tuple | list) else [text]
            if len(parts) != 1 + pair or not all(isinstance(part, str) for part in parts):
                needed = "a pair of texts" if pair else "a text"
                raise DataError(
                    f"predict: {shortened(repr(text))} given for column {column!r}; {needed} is "
                    "needed."
                )
        if not texts:
            raise DataError(f"predict: no text given for column {column!r}.")
        return self.encoder.read(column, texts, self.special)

    def _texts(self, column: str, texts: Sequence[str]) -> tuple[np.ndarray, Lengths]:
        codec = CharacterCodec(self.characters)
        most, lengths = self.columns[column].shape[0], np.array([len(text) for text in texts])
        tokens_NxT = np.zeros((len(texts), max(lengths)), np.int32)
        for row, text in enumerate(texts):
            if not 2 <= len(text) <= most:
                raise DataError(
                    f"predict: a text of {len(text)} characters given; 2 to {most} are needed, as "
                    "the run reads."
                )
            tokens_NxT[row, : len(text)] = codec.ids(text, "predict")
        return tokens_NxT, lengths


def _are_texts(values: Any) -> bool:
    if isinstance(values, np.ndarray):
        return values.dtype.kind in "OU"
    if not isinstance(values, Sequence):
        return False
    first = values if isinstance(values, str) else next(iter(values), "")
    return isinstance(first, str) or (isinstance(first, tuple | list) and _is_pair(tuple(first)))


def _is_pair(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) == 2 and {*map(type, values)} == {str}
