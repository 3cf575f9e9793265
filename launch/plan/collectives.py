"""Collectives of a compiled module: over which mesh axes, how many bytes, and how long at least.

The formulas are those of rings and tori in Austin et al., "How to Scale Your Model" (2025),
chapters 3 and 5: bandwidth alone, and a microsecond a hop where that is longer.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from launch.plan import costs
from launch.plan.costs import kind_of_collective
from launch.plan.hlo import Computation, Instruction, Module
from launch.plan.loops import executed
from launch.plan.report import Collective
from lsm.cost import Chip

HOP = 1e-6
"""Seconds that a message takes to the next chip."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A collective instruction and where it stands."""

    kind: str  # one of `launch.plan.costs.COLLECTIVES`' values
    bytes: int  # of the gathered or reduced whole; of what is sent for the other kinds
    # partition numbers of each group; (source, target) pairs of a permutation; () for what goes
    # from slice to slice
    groups: tuple[tuple[int, ...], ...]
    overlapped: bool  # it is started here and awaited elsewhere
    times: int  # in a step


def find(module: Module, devices: int, switch: bool = False) -> list[Found]:
    """Returns every collective that a compiled module runs.

    A TPU's asynchronous collective appears in the fusion that starts it, in those that run beside
    it and in the one that awaits it, with one channel: it is counted once in each computation.

    Args:
      module: as compiled for TPUs.
      devices: that it runs on.
      switch: name what an all-reduce does where it gathers or scatters, as a torus is fast at.
    """
    found, seen = [], set()
    for computation, one, times in executed(module):
        if one.op == "send" and (across := _across_slices(computation, one, times)):
            found.append(across)
        inner = module.called(one) if one.op == "fusion" else None
        places = [(computation, one)] if inner is None else [(inner, each) for each in inner]
        for scope, each in places:
            kind = kind_of_collective(each.op)
            place = (computation.name, kind, each.attribute("channel_id") or each.name)
            if kind is None or place in seen:
                continue
            seen.add(place)
            groups = replica_groups(each.text, devices)
            size = costs.operand_bytes(scope, each) * (
                len(groups[0]) if kind == "all-gather" else 1
            )
            if kind == "all-reduce" and (inner or switch):
                kind = _purpose(module, scope, each, switch)
            overlapped = each.op.endswith("-start") or (
                inner is not None and kind != "reduce-scatter"
            )
            found.append(Found(kind, size, groups, overlapped, times))
    return found


def _across_slices(scope: Computation, one: Instruction, times: int) -> Found | None:
    """Returns a collective over the data-centre network: a send to the host's own runtime."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.text)
    if not transfer:
        return None
    name = transfer[1].lower().replace("_", "-")
    kind = kind_of_collective(name) or "collective-permute"
    return Found(kind, scope[one.operands[0]].arrays[0].bytes, (), True, times)


def _purpose(module: Module, scope: Computation, one: Instruction, switch: bool) -> str:
    """Returns what an all-reduce is for: each device keeps a part alone, or has a part alone."""
    if switch and all(_padded(module, scope, name) for name in one.operands):
        return "all-gather"
    whole, users = sum(array.bytes for array in one.arrays), scope.users[one.name]
    scatters = users and 2 * costs.read_of(module, scope, one) <= whole
    return "reduce-scatter" if scatters else "all-reduce"


def _padded(module: Module, scope: Computation, name: str) -> bool:
    """Whether a value is a device's part of an array, written into zeros."""
    one = scope[name]
    while one.op in ("bitcast", "copy", "convert", "reshape", "fusion"):
        inner = module.called(one) if one.op == "fusion" else None
        scope, one = (inner, inner.root) if inner else (scope, scope[one.operands[0]])
    return one.op == "dynamic-update-slice"


_RANGE = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
"""A range of numbers, reshaped and transposed."""


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


def seconds(
    kind: str, size: float, group: int, slices: int, torus: tuple[tuple[int, bool], ...], chip: Chip
) -> float:
    """Returns how long one collective takes when nothing disturbs it.

    Args:
      kind: of collective.
      size: bytes, as in `Found`.
      group: devices in a group.
      slices: slices that a group spans.
      torus: (extent, whether it closes to a ring) of the group along each physical axis.
      chip: gives the bandwidths.
    """
    if group <= 1:
        return 0.0
    within = group // slices
    ways = sum(2 if closed else 1 for _, closed in torus) or 1
    bandwidth = min(ways, chip.links) * chip.link_bandwidth
    slowest = chip.dcn_bandwidth if slices > 1 else chip.link_bandwidth
    longest, closed = max(torus, default=(within, True))
    if kind == "collective-permute":
        return size / slowest
    if kind == "all-to-all" and chip.clock is None:  # a switch: all pairs at once
        return size * (group - 1) / group / slowest
    if kind == "all-to-all":
        inside = size * longest / (4 if closed else 2) / (2 * chip.link_bandwidth)
        return inside + size * (slices - 1) / slices / chip.dcn_bandwidth
    rounds = 2 if kind == "all-reduce" else 1
    inside = rounds * size * (within - 1) / within / bandwidth
    inside = max(inside, rounds * HOP * (within > 1) * longest / (2 if closed else 1))
    outside = rounds * size / within * (slices - 1) / slices / chip.dcn_bandwidth
    return inside + outside


def torus_of(
    group: Sequence[int], mesh: jax.sharding.Mesh, chip: Chip
) -> tuple[tuple[int, bool], ...]:
    """Returns (extent, closes to a ring) of a group along each physical axis that it spans.

    Links close where the slice is 16 long on a chip with 4 links, a multiple of 4 on one with 6.
    """
    devices = [mesh.devices.flat[n] for n in group]
    if not hasattr(devices[0], "coords"):
        return ()
    inside = [d.coords for d in devices if _home(d) == _home(devices[0])]
    whole = np.max([d.coords for d in mesh.devices.flat], axis=0) + 1
    period = 16 if chip.links == 4 else 4
    return tuple(
        (int(span), bool(span == size and size % period == 0))
        for span, size in zip(np.ptp(inside, axis=0) + 1, whole, strict=True)
        if span > 1
    )


def summarise(
    found: Iterable[Found], mesh: jax.sharding.Mesh, chip: Chip
) -> tuple[Collective, ...]:
    """Returns the collectives by kind, axes and size, slowest first; `mesh` gives the axes."""
    times = collections.Counter()
    homes = [_home(device) for device in mesh.devices.flat]
    across = tuple(homes.index(n) for n in sorted(set(homes)))  # they differ in the slice alone
    for one in found:
        groups = one.groups or (across,)
        axes, slices = spanned(groups, mesh)
        torus = torus_of(groups[0], mesh, chip) if one.groups else ()
        size = one.bytes * (slices if one.kind == "all-gather" and not one.groups else 1)
        times[one.kind, axes, len(groups[0]), slices, size, one.overlapped, torus] += one.times
    networks = ("ICI", "DCN") if chip.clock else ("NVLink", "network")
    rows = []
    for (kind, axes, group, slices, size, overlapped, torus), n in times.items():
        time = n * seconds(kind, size, group, slices, torus, chip)
        names = dict(kind=kind, axes=axes, group=group, slices=slices, network=networks[slices > 1])
        rows.append(Collective(**names, bytes=size, times=n, overlapped=overlapped, seconds=time))
    rows = [row for row in rows if row.group > 1]
    return tuple(sorted(rows, key=lambda row: (-row.seconds, row.kind, row.axes, row.bytes)))
