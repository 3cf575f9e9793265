"""Names as a table: a row for each array here, with what it is made of there, both ways."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lsm.interop.names import Names, Source, by_key_head, from_key_head, transposed, untransposed

Row = tuple[str, str | tuple[str, ...]]
"""A path here, and the tensors there: queries, keys and values of what is joined here. "{}" stands
for the number of a layer, "<>" for that of an expert."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Names):
    """Names of Hugging Face's models. How an array is laid out goes by its path.

    A kernel is transposed, `qkv` is joined (`by_key_head`), and experts are stacked.

    Attributes:
      rows: see `Row`.
      heads: query heads of the model.
      key_heads: heads of keys and values.
      transposes: whether kernels are (out, in) there, as PyTorch's; GPT-2's are not, but for that
        of the head.
      leading: dimensions of size 1 that an array has in front there, by path.
      prefix: what all names begin with in files of a model with a head.
      ignored: pattern of tensors that have no place here.
    """

    rows: tuple[Row, ...]
    heads: int = 1
    key_heads: int = 1
    transposes: bool = True
    leading: tuple[tuple[str, int], ...] = ()
    prefix: str = ""
    ignored: str | None = None

    def respelled(self, pattern: str, replacement: str, **changes: Any) -> "Table":
        """Returns a table with `re.sub` applied to the names there, and other changes."""

        def other(name: str) -> str:
            return re.sub(pattern, replacement, name)

        rows = (
            (path, other(to) if isinstance(to, str) else tuple(map(other, to)))
            for path, to in self.rows
        )
        return dataclasses.replace(self, rows=tuple(rows), **changes)

    def sources(self, here: Mapping[str, jax.ShapeDtypeStruct]) -> Mapping[str, Source]:
        """See `Names.sources`; an array without a row is left out."""
        rows = dict(self.rows)
        return {
            path: self._source(path, rows[path], here[path].shape) for path in here if path in rows
        }

    def _source(self, path: str, to: str | tuple[str, ...], shape: tuple[int, ...]) -> Source:
        tensors = (to,) if isinstance(to, str) else to
        layers = shape[0] if "{}" in tensors[0] else None
        read, write = self._layout(path, len(tensors))
        if "<>" in tensors[0]:
            (name,) = tensors
            tensors = tuple(name.replace("<>", str(expert)) for expert in range(shape[1]))
            read, write = _of_experts, _to_experts
        return Source(tensors, read, layers, write)

    def _layout(self, path: str, count: int) -> tuple[Callable, Callable]:
        """Returns how an array is made of `count` tensors, and how they are of it."""
        transposes = self.transposes or path.endswith("head/kernel")
        kernel = path.endswith("/kernel") and transposes
        if re.search(r"(^|/)qkv/", path):
            sizes = (self.heads, self.key_heads, kernel, count)
            return functools.partial(_joined, sizes), functools.partial(_parted, sizes)
        if kernel:
            return transposed, lambda x: (untransposed(x),)
        ones = dict(self.leading).get(path, 0)
        return (
            lambda x: x.reshape(x.shape[ones:]),
            lambda x: (x.reshape((1,) * ones + x.shape),),
        )


def _joined(sizes: tuple[int, int, bool, int], *tensors: np.ndarray) -> np.ndarray:
    heads, key_heads, kernel, count = sizes
    parts = [transposed(x) for x in tensors] if kernel else list(tensors)
    if count == 1:  # one after the other in one tensor
        width = parts[0].shape[-1] // (heads + 2 * key_heads)
        parts = np.split(parts[0], [heads * width, (heads + key_heads) * width], axis=-1)
    return by_key_head(*parts, key_heads)


def _parted(sizes: tuple[int, int, bool, int], qkv: np.ndarray) -> tuple[np.ndarray, ...]:
    heads, key_heads, kernel, count = sizes
    parts = from_key_head(qkv, heads, key_heads)
    if count == 1:
        parts = (np.concatenate(parts, axis=-1),)
    return tuple(untransposed(x) for x in parts) if kernel else parts


def _of_experts(*kernels: np.ndarray) -> np.ndarray:
    return np.stack([transposed(kernel) for kernel in kernels])


def _to_experts(kernels: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(untransposed(kernel) for kernel in kernels)
