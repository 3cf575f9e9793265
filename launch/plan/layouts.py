"""How the layout of a result follows from those of the operands, one dimension at a time."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lsm.mesh import BATCH_AXES, Entry, axis_names

Layout = tuple[tuple[str, ...], ...]
"""The mesh axes that each dimension is split over."""


def of_spec(spec: Iterable[Entry], ndim: int, shape: Mapping[str, int]) -> Layout:
    """Returns the layout of a PartitionSpec, for an array of `ndim` dimensions on a mesh."""
    entries = tuple(
        tuple(axis for axis in axis_names(entry) if shape.get(axis, 1) > 1) for entry in spec
    )
    return entries + ((),) * (ndim - len(entries))


def joined(*axes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the first that is not empty."""
    return next((each for each in axes if each), ())


def placed_like(
    shape: tuple[int, ...], layout: Layout, params: Mapping[tuple[int, ...], Layout]
) -> Layout:
    """Returns the layout of a parameter with this shape, for what no rows are split in.

    Gradients and updates have the shapes of parameters, and the partitioner lays them alike.
    """
    if any(axis in BATCH_AXES and axis != "fsdp" for axes in layout for axis in axes):
        return layout
    if any("fsdp" in axes and len(axes) > 1 for axes in layout):
        return layout
    return params.get(shape, layout)


def follow(eqn: Any, ins: list[Layout], shape: Mapping[str, int]) -> list[Layout]:
    """Returns the layouts of an equation's results, where these follow those of its operands."""
    name, params, out = eqn.primitive.name, eqn.params, eqn.outvars[0].aval
    if name == "sharding_constraint":
        return [of_spec(params["sharding"].spec, out.ndim, shape)]
    if name == "reshape":
        return [_reshaped(eqn.invars[0].aval.shape, out.shape, ins[0], shape)]
    if name == "transpose":
        return [tuple(ins[0][dim] for dim in params["permutation"])]
    if name == "broadcast_in_dim":
        source = dict(zip(params["broadcast_dimensions"], ins[0], strict=True))
        sizes = dict(zip(params["broadcast_dimensions"], eqn.invars[0].aval.shape, strict=True))
        return [
            tuple(source[d] if sizes.get(d) == n else () for d, n in enumerate(out.shape)),
        ]
    if name == "squeeze" or (name.startswith(("reduce_", "arg")) and "axes" in params):
        gone = params["dimensions"] if name == "squeeze" else params["axes"]
        kept = tuple(axes for dim, axes in enumerate(ins[0]) if dim not in gone)
        return [kept for _ in eqn.outvars]
    if name == "gather":
        return [_looked_up(eqn, ins)]
    return [_alike(eqn, ins, var.aval) for var in eqn.outvars]


def _alike(eqn: Any, ins: list[Layout], out: Any) -> Layout:
    """Dimensions of the result take after those of operands of the same rank, the first first."""
    layout: list[tuple[str, ...]] = []
    used: set[str] = set()
    for dim, size in enumerate(out.shape):
        found = joined(
            *(
                tuple(axis for axis in one[dim] if axis not in used)
                for one, var in zip(ins, eqn.invars, strict=True)
                if len(one) == len(out.shape) and size > 1 and var.aval.shape[dim] > 1
            )
        )
        used.update(found)
        layout.append(found)
    return tuple(layout)


def _looked_up(eqn: Any, ins: list[Layout]) -> Layout:
    """Rows of a table: batch dimensions from the indices, the others from the table."""
    numbers = eqn.params["dimension_numbers"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    inner = iter([axes for dim, axes in enumerate(ins[0]) if dim not in gone])
    rows = iter(ins[1][:-1])
    out = eqn.outvars[0].aval
    layout = [next(inner if d in numbers.offset_dims else rows, ()) for d in range(out.ndim)]
    used: set[str] = set()
    for dim in sorted(range(out.ndim), key=lambda d: d in numbers.offset_dims):
        layout[dim] = tuple(axis for axis in layout[dim] if axis not in used)
        used.update(layout[dim])
    return tuple(layout)


def _reshaped(
    before: tuple[int, ...], after: tuple[int, ...], layout: Layout, shape: Mapping[str, int]
) -> Layout:
    """The slowest dimension of each group that is merged or split keeps the axes that divide it."""
    result: list[tuple[str, ...]] = [()] * len(after)
    i = j = 0
    while i < len(before) and j < len(after):
        first, group = j, [i]
        left, right = before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left *= before[i]
                group.append(i)
                i += 1
            else:
                right *= after[j]
                j += 1
        axes = joined(*(layout[dim] for dim in group))
        place = next((d for d in range(first, j) if after[d] > 1), first)
        while axes and after[place] % math.prod(shape.get(axis, 1) for axis in axes):
            axes = axes[:-1]
        result[place] = axes
    return tuple(result)
