"""Features of TFDS as columns, and how records are parsed without its decoder.

A record is a `tf.train.Example`: a map from names to lists of bytes, integers or floats. Protobuf
parses it in C; to make an example of that takes TFDS ten times as long. So numbers, texts and
pictures are read here, and what is nested, compressed or of unknown size is left to TFDS.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lsm.data import images
from lsm.data.dataset import Columns
from lsm.data.values import narrowed

_LISTS = {"b": "int64_list", "i": "int64_list", "u": "int64_list", "f": "float_list"}


@dataclasses.dataclass(frozen=True)
class Column:
    """One feature: the shape and dtype of an example, and how stored values become a column.

    Attributes:
      name: of the feature.
      one: what an example looks like; dtype object where shapes differ or the value is text.
      stored: list of the record that holds the value; None where only TFDS knows.
      dtype: of the numbers in `stored`, or object.
      decode: from the values that are stored, or that TFDS hands over, to those of the column.
    """

    name: str
    one: jax.ShapeDtypeStruct
    stored: str | None
    dtype: np.dtype
    decode: Callable[[Sequence[Any]], Sequence[Any]]

    def parsed(self, examples: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        """Returns the stored values (N, ...) of N parsed records.

        Raises:
          ValueError: a record holds none, or not as many numbers as an example has.
        """
        lists = [getattr(example[self.name], self.stored).value for example in examples]
        shape = () if self.dtype == object else self.one.shape
        size = int(np.prod(shape))
        for values in lists:
            if len(values) != size:
                raise ValueError(f"feature {self.name!r} holds {len(values)} values, not {size}")
        flat = [value for values in lists for value in values]
        if self.dtype == object:
            return flat
        return np.array(flat, self.dtype).reshape(len(examples), *shape)

    def stack(self, values: Sequence[Any]) -> np.ndarray:
        """Returns the column (N, ...) of N values."""
        decoded = self.decode(values)
        if self.one.dtype != object:
            # Checked as stored, in 64 bits: a cast would wrap an integer that does not fit.
            stacked = narrowed(np.asarray(decoded), self.name)
            # An error where they are of another shape: -1 would make fewer, or more, of them.
            shape = (len(values), *self.one.shape)
            return stacked.astype(self.one.dtype, copy=False).reshape(shape)
        # np.array(decoded, object) would make pictures of one size a single array of numbers.
        column = np.empty(len(values), object)
        column[:] = list(decoded)
        return column


class Parser:
    """Turns records into columns."""

    def __init__(self, features: Mapping[str, Any], size: tuple[int, int] | None):
        """Takes features of TFDS by name, and (height, width) to resize pictures to, or None."""
        import tensorflow_datasets as tfds

        self.columns = {name: _column(name, feature, size) for name, feature in features.items()}
        # Those and no others: parsing is the larger part of reading an example.
        left = {name: features[name] for name, c in self.columns.items() if c.stored is None}
        self._left = tfds.features.FeaturesDict(left) if left else None

    def __call__(self, records: Sequence[bytes]) -> Columns:
        """Returns the columns of N records."""
        from tensorflow_datasets.proto import tf_example_pb2

        parse = tf_example_pb2.Example.FromString
        stored = [parse(record).features.feature for record in records]
        made = [self._left.deserialize_example_np(record) for record in records if self._left]
        return {
            name: column.stack(
                column.parsed(stored) if column.stored else [example[name] for example in made]
            )
            for name, column in self.columns.items()
        }


def _column(name: str, feature: Any, size: tuple[int, int] | None) -> Column:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8:
        shape = (*(size or feature.shape[:2]), feature.shape[2])
        fixed = None not in shape
        one = jax.ShapeDtypeStruct(shape if fixed else (), np.uint8 if fixed else object)
        # By Pillow: TFDS would take OpenCV where that is installed. It turns none by its EXIF.
        decode = functools.partial(images.decode_all, channels=shape[2], size=size, upright=False)
        return Column(name, one, "bytes_list", np.dtype(object), decode)
    dtype = getattr(feature, "np_dtype", object)
    plain = isinstance(feature, tfds.features.Tensor) and dtype is not object
    if not plain or None in feature.shape or np.dtype(dtype).kind not in "biuf":
        one, delivered = jax.ShapeDtypeStruct((), object), np.dtype(object)
    else:
        delivered = np.dtype(dtype)
        # An empty array, to learn the dtype.
        narrow = narrowed(np.zeros(0, dtype), "").dtype
        one = jax.ShapeDtypeStruct(tuple(feature.shape), narrow)
    return Column(name, one, _stored(feature), delivered, _as_is)


def _stored(feature: Any) -> str | None:
    """Returns the list of a record that holds a feature as it is delivered, None for no list."""
    import tensorflow_datasets as tfds

    kinds = (tfds.features.Tensor, tfds.features.Scalar, tfds.features.ClassLabel)
    info = feature.get_serialized_info()
    # Not those that are derived: their decoders may do anything.
    if type(feature) is tfds.features.Text:
        return "bytes_list" if info.shape == () and not info.optional else None
    if type(feature) not in kinds or info.optional or None in info.shape:
        return None
    # Compressed numbers are of dtype object here; uint64 is kept as if it were int64.
    dtype = np.dtype(info.np_dtype)
    same = info.shape == feature.shape and dtype == feature.np_dtype != np.uint64
    return _LISTS.get(dtype.kind) if same else None


def _as_is(values: Sequence[Any]) -> Sequence[Any]:
    return values
