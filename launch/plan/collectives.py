"""Collectives of a compiled module: over which mesh axes, how many bytes, and how long at least."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from launch.plan import costs
from launch.plan.costs import kind_of_collective
from launch.plan.hlo import Computation, Instruction
from launch.plan.loops import executed
from launch.plan.report import Collective
from lsm.cost import Chip, collective_seconds


def collectives_of(
    entry: Computation, mesh: jax.sharding.Mesh, chip: Chip
) -> tuple[Collective, ...]:
    """Returns the collectives of a module by kind, axes and size, slowest first.

    `mesh` is of the devices that it runs on, or that TPUs stand in for; `chip` gives the times.
    """
    times = collections.Counter()
    homes = [_home(device) for device in mesh.devices.flat]
    across = tuple(homes.index(n) for n in sorted(set(homes)))  # they differ in the slice alone
    for kind, size, groups, overlapped, n in _found(entry, mesh.size, switch=not chip.clock):
        torus = torus_of(groups[0], mesh, chip) if groups else ()
        if kind == "all-gather" and not groups:
            size *= len(across)
        groups = groups or (across,)
        axes, slices = spanned(groups, mesh)
        one = Collective(
            kind=kind,
            axes=axes,
            group=len(groups[0]),
            slices=slices,
            network=(("ICI", "DCN") if chip.clock else ("NVLink", "network"))[slices > 1],
            bytes=size,
            overlapped=overlapped,
            times=1,
            seconds=collective_seconds(kind, size, len(groups[0]), slices, torus, chip),
        )
        times[one] += n
    rows = [dataclasses.replace(one, times=n, seconds=n * one.seconds) for one, n in times.items()]
    rows = [row for row in rows if row.group > 1]
    return tuple(sorted(rows, key=lambda row: (-row.seconds, row.kind, row.axes, row.bytes)))


def _found(entry: Computation, devices: int, switch: bool) -> Iterator[tuple]:
    """Yields (kind, bytes, groups of partitions, overlapped, times) of what a module runs.

    There are no groups of what goes from slice to slice, and (from, to) of a permutation.
    A TPU's asynchronous collective appears in the fusion that starts it, in those that run beside
    it and in the one that awaits it, with one channel: it is counted once in each computation.
    On a switch an all-reduce is named by what it does where it gathers or scatters, as a torus is
    fast at.
    """
    seen = set()
    for one, times in executed(entry):
        if one.op == "send":
            yield from _across_slices(one, times)
        for each in costs.parts_of(one):
            kind = kind_of_collective(each.op)
            place = (one.home.name, kind, each.attribute("channel_id") or each.name)
            if kind is None or place in seen:
                continue
            seen.add(place)
            groups = replica_groups(each.text, devices)
            size = sum(array.bytes for operand in each.operands for array in operand.arrays)
            if kind == "all-gather":
                size *= len(groups[0])
            if kind == "all-reduce" and (one.fused or switch):
                kind = _purpose(each, switch)
            started = each.op.endswith("-start")
            overlapped = started or (bool(one.fused) and kind != "reduce-scatter")
            yield kind, size, groups, overlapped, times


def _across_slices(one: Instruction, times: int) -> Iterator[tuple]:
    """Yields a collective over the data-centre network: a send to the host's own runtime."""
    if transfer := re.search(r'_xla_megascale_transfer_type="(\w+)"', one.text):
        name = transfer[1].lower().replace("_", "-")
        kind = kind_of_collective(name) or "collective-permute"
        yield kind, one.operands[0].arrays[0].bytes, (), True, times


def _purpose(one: Instruction, switch: bool) -> str:
    """Returns what an all-reduce is for: each device keeps a part alone, or has a part alone."""
    if switch and all(map(_padded, one.operands)):
        return "all-gather"
    whole = sum(array.bytes for array in one.arrays)
    return "reduce-scatter" if one.users and 2 * costs.read_of(one) <= whole else "all-reduce"


def _padded(one: Instruction) -> bool:
    """Whether a value is a device's part of an array, written into zeros."""
    while one.op in ("bitcast", "copy", "convert", "reshape", "fusion"):
        one = one.fused.root if one.fused else one.operands[0]
    return one.op == "dynamic-update-slice"


_RANGE = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


def replica_groups(text: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Returns the groups of a collective, in any of the spellings of HLO.

    `{{0,1},{2,3}}`, `[2,2]<=[4]` or `[2,2]<=[2,2]T(1,0)` (iota, reshaped and transposed),
    `mesh['a'=2,'b'=2] {'b'}` or, of devices in another order,
    `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}`, and for permutations
    `source_target_pairs={{0,1},{1,0}}`.
    """
    mesh = rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_RANGE}\))?\s*\{{([^}}]*)\}}"
    groups = [range(devices)]
    if listed := re.search(r"(?:source_target_pairs|replica_groups)=\{(\{[\d,{} ]*\})\}", text):
        groups = map(_ints, re.findall(r"\{([\d, ]+)\}", listed[1]))
    elif iota := re.search(rf"replica_groups=\[([\d,]+)\]<={_RANGE}", text):
        groups = _range(iota[2], iota[3]).reshape(_ints(iota[1])).tolist()
    elif named := re.search(mesh, text):
        groups = _along(*named.groups())
    return tuple(map(tuple, groups))


def _ints(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _range(shape: str, order: str | None) -> np.ndarray:
    ids = np.arange(math.prod(_ints(shape))).reshape(_ints(shape))
    return ids.transpose(_ints(order)) if order else ids


def _along(mesh: str, source: str | None, order: str | None, axes: str) -> Iterable[list[int]]:
    """Returns the groups along axes of a mesh: devices whose places differ in these alone.

    Of `'b'=4`, `'b':(1)2` are the first 2 ways and `'b':(2)2` those within one of them.
    """
    names, sizes = zip(*re.findall(r"'([^']+)'=(\d+)", mesh), strict=True)
    shape = [*map(int, sizes)]
    ids = _range(source, order) if source else np.arange(math.prod(shape))
    place = np.indices(shape)
    for name, before, ways in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        dim = names.index(name)
        n = int(ways or shape[dim])
        step = shape[dim] // (int(before or 1) * n)
        place[dim] -= place[dim] // step % n * step
    groups = collections.defaultdict(list)
    for key, one in zip(place.reshape(len(shape), -1).T.tolist(), ids.flat, strict=True):
        groups[tuple(key)].append(int(one))
    return groups.values()


def spanned(
    groups: Iterable[Sequence[int]], mesh: jax.sharding.Mesh
) -> tuple[tuple[str, ...], int]:
    """Returns the mesh axes that partition groups span, and the most slices that one spans.

    A partition's number is its place in the mesh's array of devices.
    """
    axes, slices = set(), 1
    for group in groups:
        places = np.unravel_index(group, mesh.devices.shape)
        axes.update(axis for axis, at in zip(mesh.axis_names, places, strict=True) if np.ptp(at))
        slices = max(slices, len({_home(mesh.devices.flat[n]) for n in group}))
    return tuple(axis for axis in mesh.axis_names if axis in axes), slices


def _home(device: jax.Device) -> int:
    """Returns the slice of a TPU, or the node of a stand-in for a GPU."""
    return getattr(device, "node", getattr(device, "slice_index", None) or 0)


def torus_of(
    group: Sequence[int], mesh: jax.sharding.Mesh, chip: Chip
) -> tuple[tuple[int, bool], ...]:
    """Returns (extent, closes to a ring) of a group along each physical axis that it spans.

    Links close where the slice is 16 long on a chip with 4 links, and on one with 6 in slices of
    whole cubes of 4 x 4 x 4 (Google's pages on v5e, v6e; v4, v5p).
    """
    devices = [mesh.devices.flat[n] for n in group]
    if not hasattr(devices[0], "coords"):
        return ()
    inside = [d.coords for d in devices if _home(d) == _home(devices[0])]
    whole = np.max([d.coords for d in mesh.devices.flat], axis=0) + 1
    cubes = (whole % 4 == 0).all()
    return tuple(
        (int(span), bool(span == size and (size % 16 == 0 if chip.links == 4 else cubes)))
        for span, size in zip(np.ptp(inside, axis=0) + 1, whole, strict=True)
        if span > 1
    )
