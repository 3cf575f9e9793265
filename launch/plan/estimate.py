"""From a parsed module to operations by kind, a roofline, and a projection of the run."""

import collections
import dataclasses

from launch.plan import costs
from launch.plan.hlo import Computation, Instruction, Module
from launch.plan.loops import executed, trip_count
from launch.plan.report import Collective, Operations, Plan, Projection, Roofline
from lsm.cost import Chip

EFFICIENCY = {"a100": (0.55, 0.75), "a100-40gb": (0.55, 0.75)}
"""Share of the peak that large bfloat16 products reach, low and high; `OTHERS` for other chips.

The middle of the hardware utilisation (HFU) that MosaicML measured over models of 1 to 70 billion
parameters on 8 to 64 GPUs, FSDP: 55-77 % on A100, 40-59 % on H100, whose peak is harder to feed
(github.com/mosaicml/llm-foundry, scripts/train/benchmarking/README.md).
"""
OTHERS = (0.40, 0.60)

_COPIES = ("copy", "transpose", "dynamic-slice", "slice", "concatenate", "pad", "reshape")
_PREFETCH = ("copy-start", "slice-start")


@dataclasses.dataclass(frozen=True)
class Work:
    """What a device does in a step."""

    operations: tuple[Operations, ...]  # by kind, slowest first
    seen: float  # FLOPs of products
    unseen: float  # FLOPs of custom calls, which the compiler does not tell
    unknown_loops: int  # while loops whose length could not be read

    @property
    def moved(self) -> float:
        """Bytes to and from HBM."""
        return sum(one.bytes for one in self.operations)

    @property
    def serial(self) -> float:
        """Seconds of everything, one after the other; prefetches always run beside the rest."""
        return sum(one.seconds for one in self.operations if one.kind != "prefetch")


def work_of(
    module: Module, collectives: tuple[Collective, ...], hardware: float, chip: Chip
) -> Work:
    """Returns what a compiled module does on one device.

    Args:
      module: as compiled.
      collectives: their time comes with them.
      hardware: FLOPs that a device has to do; custom calls do, at the peak, what is not seen.
      chip: gives the rates; the compiler's cycles count where it has the clock.
    """
    sums: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    unknown = 0
    for scope, one, times, known in executed(module):
        unknown += one.op == "while" and known and trip_count(module, scope, one) is None
        if costs.free(one):
            continue
        kind = _kind(module, scope, one)
        moved, flops = (f(module, scope, one) for f in (costs.traffic, costs.flops))
        cycles = one.cycles if chip.clock and kind != "collective" else None
        peak = max(moved / chip.bandwidth, flops / chip.flops)
        sums[kind].update(
            count=times,
            flops=times * flops,
            bytes=times * moved,
            cycles=times * (cycles or 0),
            seconds=times * (peak if cycles is None else cycles / chip.clock),
        )
    if collectives:
        sums["collective"]["seconds"] = sum(one.seconds for one in collectives)
    seen, unseen = sum(one["flops"] for one in sums.values()), 0.0
    if kernels := sums.get("custom call"):
        unseen = max(hardware - seen, 0.0)
        kernels.update(flops=unseen)
        kernels["seconds"] = max(kernels["seconds"], unseen / chip.flops)
    rows = [Operations(kind=kind, **sum_) for kind, sum_ in sums.items()]
    slowest_first = sorted(rows, key=lambda row: (-row.seconds, row.kind))
    return Work(tuple(slowest_first), seen, unseen, unknown)


def _kind(module: Module, scope: Computation, one: Instruction) -> str:
    if one.op in _PREFETCH:
        return "prefetch"
    if costs.is_kernel(one):
        return "custom call"
    if costs.flops(module, scope, one):
        return "matmul"
    inner = module.called(one) if one.op == "fusion" else None
    if any(costs.kind_of_collective(each.op) for each in (one, *(inner or ()))):
        return "collective"
    if inner:
        return "elementwise"
    return "copy" if one.op in _COPIES else "other"


def roofline_of(
    compute: float, moved: float, collectives: tuple[Collective, ...], chip: Chip
) -> Roofline:
    """Returns the least time of a step, given seconds of the FLOPs and bytes to and from HBM."""
    near, far = (
        sum(one.seconds for one in collectives if (one.slices > 1) is across)
        for across in (False, True)
    )
    memory = moved / chip.bandwidth
    return Roofline(compute=compute, memory=memory, interconnect=near, network=far)


def assumed_ends(roofline: Roofline, chip: Chip) -> tuple[float, float]:
    """Returns the time of a step where there are no cycles: products at a share of the peak.

    From efficient products with all hidden behind the longest part, to inefficient ones with
    nothing hidden that is sent.
    """
    low, high = EFFICIENCY.get(chip.name, OTHERS)
    sent = roofline.interconnect + roofline.network
    fast = max(roofline.compute / high, roofline.memory, roofline.interconnect, roofline.network)
    return fast, max(roofline.compute / low, roofline.memory) + sent


def project(plan: Plan, model_flops: float, fast: float, slow: float) -> Projection:
    """Returns speed, time and money of a plan's run with steps of `fast` to `slow` seconds."""
    run, machine = plan.run, plan.machine
    ends = (fast, max(slow, fast))

    def rates(amount: float) -> tuple[float, float]:
        return amount / ends[1], amount / ends[0]

    hours = tuple(seconds * run.steps / 3600 for seconds in ends)
    cost, tokens = (machine.price or 0) * machine.chips, run.tokens_per_example
    return Projection(
        step_seconds=ends,
        mfu=rates(model_flops / (machine.devices * machine.peak_flops)),
        examples_per_second=rates(run.batch_size),
        tokens_per_second=rates(run.batch_size * tokens) if tokens else None,
        hours=hours,
        usd=tuple(cost * each for each in hours) if cost else None,
    )
