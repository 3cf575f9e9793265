"""Rules that lay arrays over the axes of a mesh, and what a model can do with it.

A model says that in a `Layout`; nothing else of it knows of devices.
"""

import dataclasses
import math

import jax
from jax.sharding import PartitionSpec

from lsm.mesh.axes import Entry


@dataclasses.dataclass(frozen=True)
class Fsdp:
    """Shards the largest dimension that the axis divides; leaves small arrays whole.

    Attributes:
      axis: mesh axis to shard over.
      min_size: arrays with fewer elements are replicated: gathering them costs more than it saves.
    """

    axis: str = "fsdp"
    min_size: int = 4096

    def __call__(self, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
        """Returns the spec of an array of `shape` on `mesh`."""
        ways = mesh.shape[self.axis]
        if ways == 1 or math.prod(shape) < self.min_size:
            return PartitionSpec()
        # `sorted` is stable: of equals the first.
        for dim in sorted(range(len(shape)), key=lambda d: shape[d], reverse=True):
            if shape[dim] % ways == 0:
                return PartitionSpec(*[self.axis if d == dim else None for d in range(len(shape))])
        return PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where the parameters whose path matches go.

    Attributes:
      pattern: regular expression searched for in the path, such as "qkv/kernel$".
      spec: one entry a dimension (an axis, several axes, or None), or `Fsdp()`. Optimiser state
        that it does not fit (factored moments, say) is laid out by `Fsdp()`.
      otherwise: the spec where a dimension does not divide; None makes that an error.
    """

    pattern: str
    spec: tuple[Entry, ...] | Fsdp = Fsdp()
    otherwise: tuple[Entry, ...] | Fsdp | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a model can do with a mesh.

    Attributes:
      rules: where its parameters go; see `Rule`.
      axes: axes beside `BATCH_AXES` that it uses.
      stacks: (pattern, n) for parameters whose first n axes are stacks, of layers, say, or of
        experts: optimisers take each part as a tensor of its own. The first match wins.
    """

    rules: tuple[Rule, ...] = (Rule(".*", Fsdp()),)
    axes: tuple[str, ...] = ()
    stacks: tuple[tuple[str, int], ...] = ()
