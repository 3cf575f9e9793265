"""The rows of a batch on a mesh: which devices and processes hold which."""

import functools
import math

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lsm.mesh.axes import BATCH_AXES


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its rows over `BATCH_AXES`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_ways(mesh: jax.sharding.Mesh) -> int:
    """Returns the number of parts that the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def place(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch (see `local_rows`) on its devices, as global arrays.

    The rows are where `sharding` has `BATCH_AXES`: the first dimension, or the second of several
    batches.
    """
    ways, local = _blocks(sharding)
    before = sharding.spec.index(BATCH_AXES)

    def put(x: np.ndarray) -> jax.Array:
        rows = x.shape[before] // len(local)  # of one block
        shape = (*x.shape[:before], ways * rows, *x.shape[before + 1 :])

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            # Global rows to this process's; a slice over everything starts at None.
            start = local.index((index[before].start or 0) // rows) * rows
            return x[(slice(None),) * before + (slice(start, start + rows),)]

        return jax.make_array_from_callback(shape, sharding, of_device)

    return {name: put(x) for name, x in batch.items()}


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Returns the rows (n,) of a batch that devices of this process hold, in order.

    Processes hold the same rows where an axis that does not split rows, such as "tensor", spans
    them.
    """
    ways, local = _blocks(sharding)
    return np.arange(batch_size).reshape(ways, batch_size // ways)[list(local)].reshape(-1)


@functools.cache
def _blocks(sharding: NamedSharding) -> tuple[int, tuple[int, ...]]:
    """Returns how many blocks of rows there are, and the numbers of those in this process."""
    ways = batch_ways(sharding.mesh)
    # As if a block were one row: an index is the number of a block. Devices along other axes
    # share blocks, hence the set.
    indices = batch_sharding(sharding.mesh).addressable_devices_indices_map((ways,)).values()
    return ways, tuple(sorted({index[0].start or 0 for index in indices}))
