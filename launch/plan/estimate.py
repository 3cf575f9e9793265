"""From a parsed module to operations by kind, a roofline, and a projection of the run."""

import collections
import dataclasses
import functools

from launch.plan import costs
from launch.plan.hlo import Computation, Instruction, Module
from launch.plan.loops import executed, trip_count
from launch.plan.report import (
    Collective,
    Flops,
    Machine,
    Operations,
    Projection,
    Roofline,
    Run,
)
from lsm.cost import Chip

_COPIES = ("copy", "transpose", "dynamic-slice", "slice", "concatenate", "pad", "reshape")
_PREFETCH = ("copy-start", "slice-start")


@dataclasses.dataclass
class _Sum:
    count: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    cycles: int = 0
    unestimated: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Work:
    """What a device does in a step.

    Attributes:
      operations: by kind, slowest first.
      kernels: custom calls in a step, whose FLOPs the compiler does not tell.
      unknown_loops: while loops whose length could not be read.
    """

    operations: tuple[Operations, ...]
    kernels: int
    unknown_loops: int

    def total(self, name: str) -> float:
        """Returns the sum of a field of `Operations`."""
        return sum(getattr(one, name) for one in self.operations)

    @property
    def serial(self) -> float:
        """Seconds of everything, one after the other; prefetches always run beside the rest."""
        return sum(one.seconds for one in self.operations if one.kind != "prefetch")


def with_kernels(work: Work, flops: float, chip: Chip) -> Work:
    """Returns `work` with `flops` on each device given to its custom calls, run at the peak."""
    operations = [
        dataclasses.replace(one, flops=flops, seconds=max(one.seconds, flops / chip.flops))
        if one.kind == "custom call"
        else one
        for one in work.operations
    ]
    slowest_first = sorted(operations, key=lambda row: (-row.seconds, row.kind))
    return dataclasses.replace(work, operations=tuple(slowest_first))


def weight_of(module: Module):
    """Returns the weight by which the longest branch of a conditional is chosen."""
    return functools.cache(lambda computation: costs.computation_flops(module, computation))


def work_of(module: Module, collectives: tuple[Collective, ...], chip: Chip) -> Work:
    """Returns what a module does on one device; the time of collectives comes with them."""
    sums: dict[str, _Sum] = collections.defaultdict(_Sum)
    unknown = 0
    for scope, one, times, known in executed(module, weight_of(module)):
        if one.op == "while":
            unknown += _unknown(module, scope, one, known)
        if one.op in costs.FREE:
            continue
        kind = _kind(module, scope, one)
        sum_ = sums[kind]
        moved, flops = (f(module, scope, one) for f in (costs.traffic, costs.flops))
        sum_.count += times
        sum_.flops += times * flops
        sum_.bytes += times * moved
        if one.cycles is not None and kind != "collective":
            sum_.cycles += times * one.cycles
            sum_.seconds += times * one.cycles / chip.clock
        else:
            sum_.unestimated += times
            sum_.seconds += times * max(moved / chip.bandwidth, flops / chip.flops)
    if collectives:
        sums["collective"].seconds = sum(one.seconds for one in collectives)
    rows = [Operations(kind=kind, **vars(sum_)) for kind, sum_ in sums.items()]
    kernels = sums["custom call"].count if "custom call" in sums else 0
    return Work(tuple(sorted(rows, key=lambda row: (-row.seconds, row.kind))), kernels, unknown)


def _unknown(module: Module, scope: Computation, one: Instruction, known: bool) -> bool:
    return known and trip_count(module, scope, one) is None


def _kind(module: Module, scope: Computation, one: Instruction) -> str:
    if one.op in _PREFETCH:
        return "prefetch"
    if costs.kind_of_collective(one.op):
        return "collective"
    if costs.is_kernel(one):
        return "custom call"
    inner = module.called(one) if one.op == "fusion" else None
    if costs.flops(module, scope, one):
        return "matmul"
    if inner and any(costs.kind_of_collective(each.op) for each in inner):
        return "collective"
    if inner:
        return "elementwise"
    return "copy" if one.op in _COPIES else "other"


def roofline_of(
    flops: Flops, work: Work, collectives: tuple[Collective, ...], machine: Machine, chip: Chip
) -> Roofline:
    """Returns the least time of a step for each part of the machine."""
    dcn = sum(one.seconds for one in collectives if one.slices > 1)
    return Roofline(
        compute=max(flops.hardware, flops.compiled) / machine.devices / chip.flops,
        memory=work.total("bytes") / chip.bandwidth,
        interconnect=sum(one.seconds for one in collectives) - dcn,
        network=dcn,
    )


def project(run: Run, machine: Machine, model_flops: float, fast: float, slow: float) -> Projection:
    """Returns speed, time and money for steps of `fast` to `slow` seconds."""
    ends = (fast, max(slow, fast))

    def rates(amount: float) -> tuple[float, float]:
        low, high = (amount / seconds for seconds in reversed(ends))
        return low, high

    peak = machine.devices * machine.peak_flops
    hours = tuple(seconds * run.steps / 3600 for seconds in ends)
    cost = machine.price and machine.price * machine.chips
    tokens = run.tokens_per_example and rates(run.batch_size * run.tokens_per_example)
    return Projection(
        step_seconds=ends,
        mfu=rates(model_flops / peak),
        examples_per_second=rates(run.batch_size),
        tokens_per_second=tokens or None,
        hours=hours,
        usd=tuple(cost * each for each in hours) if cost else None,
    )
