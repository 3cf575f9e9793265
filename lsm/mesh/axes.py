"""Names of mesh axes, and constraints inside models.

The mesh that a function is compiled for is the ambient one while it is traced (`lsm.mesh.jit`);
without one, as in a unit test, `constrain` does nothing.
"""

import contextlib
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lsm.errors import MeshError

AXES = ("pipeline", "data", "fsdp", "expert", "sequence", "tensor")
"""All mesh axes, those that talk least first: the last ones get the nearest devices."""

BATCH_AXES = ("data", "fsdp", "expert")
"""Axes that the rows of a batch are split over."""

Entry = str | tuple[str, ...] | None
"""What one dimension is split over: an axis, several, or nothing."""


def ways(*axes: str) -> int:
    """Returns the number of devices along `axes` of the ambient mesh; 1 without one."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in axes)


def unplaced() -> contextlib.AbstractContextManager:
    """Returns a context without an ambient mesh: `constrain` does nothing inside."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def constrain(x: jax.Array, *spec: Entry) -> jax.Array:
    """Returns `x`, split over the ambient mesh as `spec` says, one entry a dimension.

    A dimension of size 1 stays whole: the rows of one example under `jax.vmap`, or one token.

    Raises:
      MeshError: a larger dimension does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # On one device there is nothing to place, and the program stays free of constraints.
    if mesh.empty or mesh.size == 1:
        return x
    # Sizes are those of the trace: under `vmap` without the mapped dimension.
    spec = [None if x.shape[dim] == 1 else entry for dim, entry in enumerate(spec)]
    for dim, entry in enumerate(spec):
        names = axis_names(entry)
        if x.shape[dim] % ways(*names):
            raise MeshError(
                f"mesh: {product(names, mesh.shape)} does not divide dimension {dim} of an "
                f"activation {x.shape}, which is {x.shape[dim]}."
            )
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def split_rows(x: jax.Array, count: int) -> jax.Array:
    """Returns (B, ...) as (count, B / count, ...); part i holds rows i, i + count, ...

    Every device of a mesh keeps its own rows.
    """
    # The split dimension stays the outer one: with parts outside, rows would change devices.
    return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)


def axis_names(entry: Entry) -> tuple[str, ...]:
    """Returns the axes of one entry of a spec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def product(axes: tuple[str, ...], shape) -> str:
    """Returns "fsdp=2 x tensor=4" for error messages."""
    return " x ".join(f"{axis}={shape[axis]}" for axis in axes)
