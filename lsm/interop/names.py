"""How other libraries call the arrays of a model, and how they lay them out."""

import abc
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np


def transposed(kernel: np.ndarray) -> np.ndarray:
    """Returns PyTorch's kernel (out, in, ...) as (..., in, out): of dense layers, convolutions."""
    return np.moveaxis(kernel, (1, 0), (-2, -1))


def by_key_head(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """Returns queries, keys and values as the columns of `lsm.models.Attention`'s `qkv`.

    Args:
      q: (..., query heads x K); queries of a group stand together.
      k: (..., key heads x K).
      v: (..., key heads x K).
      heads: key heads.

    Returns:
      (..., (query heads + 2 key heads) x K): for each key head its queries, the key, the value.
    """
    by_head = [x.reshape(*x.shape[:-1], heads, -1) for x in (q, k, v)]
    return np.concatenate(by_head, axis=-1).reshape(*q.shape[:-1], -1)


def from_key_head(
    qkv: np.ndarray, heads: int, key_heads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Undoes `by_key_head`: columns (..., (heads + 2 key_heads) x K) to queries, keys, values."""
    q = heads // key_heads
    grouped = qkv.reshape(*qkv.shape[:-1], key_heads, q + 2, -1)
    parts = np.split(grouped, [q, q + 1], axis=-2)
    return tuple(x.reshape(*qkv.shape[:-1], -1) for x in parts)


def untransposed(kernel: np.ndarray) -> np.ndarray:
    """Undoes `transposed`: (..., in, out) to PyTorch's (out, in, ...)."""
    return np.moveaxis(kernel, (-2, -1), (1, 0))


def _same(x: Any) -> Any:
    return x


@dataclasses.dataclass(frozen=True)
class Source:
    """What one array here is made of.

    Attributes:
      tensors: names there. With `layers`, "{}" in them stands for the number of a layer.
      function: makes the array of the tensors, or one layer of it; of NumPy, and pure. It is also
        called with zeros of the tensors' shapes, to learn the shape of what it makes.
      layers: how many are stacked in the first dimension here; None where it is no stack.
      inverse: makes the tensors of the array, or of one layer of it; None is not known.
    """

    tensors: tuple[str, ...]
    function: Callable[..., np.ndarray] = _same
    layers: int | None = None
    inverse: Callable[[np.ndarray], tuple[np.ndarray, ...]] | None = None

    def layer(self, number: int) -> tuple[str, ...]:
        """Returns the names of the tensors of a layer; of all, where it is no stack."""
        if self.layers is None:
            return self.tensors
        return tuple(name.replace("{}", str(number)) for name in self.tensors)


class Names(abc.ABC):
    """How the arrays of a model are called in a file. Subclasses are frozen dataclasses.

    Attributes:
      ignored: pattern of the tensors that have no place here; None is none of them.
    """

    ignored: ClassVar[str | None] = None

    @abc.abstractmethod
    def sources(self, here: Mapping[str, jax.ShapeDtypeStruct]) -> Mapping[str, Source]:
        """Returns what each array here is made of; an array that a file never has is left out.

        Args:
          here: shape and dtype by path, such as "params/Dense_0/kernel", "batch_stats/norm/mean".
        """


@dataclasses.dataclass(frozen=True)
class Torch(Names):
    """PyTorch's own layers: dense, convolution, norms, embedding.

    A path loses its collection, is renamed, and its last part is called as there; kernels are
    transposed; a vector may have dimensions of size 1 there.

    Attributes:
      rename: pairs (pattern, replacement) of `re.sub`, one after the other: from a path without its
        collection, such as "stem/norm/scale", to the name there. "{}" in the result stands for the
        number of a layer, of arrays that are stacked here.
    """

    rename: tuple[tuple[str, str], ...] = ()
    ignored: ClassVar[str | None] = r"\.num_batches_tracked$"

    _LAST: ClassVar[Mapping[str, str]] = {
        "kernel": "weight",
        "scale": "weight",
        "embedding": "weight",
        "mean": "running_mean",
        "var": "running_var",
    }

    def sources(self, here: Mapping[str, jax.ShapeDtypeStruct]) -> Mapping[str, Source]:
        """See `Names.sources`."""
        return {path: self._source(path, leaf.shape) for path, leaf in here.items()}

    def _source(self, path: str, shape: tuple[int, ...]) -> Source:
        name = path.partition("/")[2]
        for pattern, replacement in self.rename:
            name = re.sub(pattern, replacement, name)
        before, slash, last = name.rpartition("/")
        name = f"{before}{slash}{self._LAST.get(last, last)}".replace("/", ".")
        layers = shape[0] if "{}" in name else None
        if path.endswith("/kernel"):
            return Source((name,), transposed, layers)
        vector = len(shape) == 1 + (layers is not None)
        return Source((name,), np.ravel if vector else _same, layers)
