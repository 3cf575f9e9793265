"""From a parsed module to operations by kind, a roofline, and a projection of the run."""

import collections
from collections.abc import Iterable

from launch.plan import costs
from launch.plan.hlo import Computation, Instruction
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
KERNELS = "custom call"
"""Kind of operation that the compiler cannot look into."""


def operations_of(
    entry: Computation, collectives: Iterable[Collective], hardware: float, chip: Chip
) -> tuple[tuple[Operations, ...], int]:
    """Returns what a compiled module does on one device, and its number of loops without a length.

    Args:
      entry: of the module.
      collectives: their time comes with them.
      hardware: FLOPs that a device has to do; custom calls do, at the peak, what is not seen.
      chip: gives the rates; the compiler's cycles count where it has the clock.
    """
    sums: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    unknown = 0
    for one, times in executed(entry):
        unknown += one.op == "while" and trip_count(one) is None
        if costs.free(one):
            continue
        kind, moved, flops = _kind(one), costs.traffic(one), costs.flops(one)
        cycles = one.cycles if chip.clock and kind != "collective" else None
        peak = max(moved / chip.bandwidth, flops / chip.flops)
        sums[kind].update(
            count=times,
            flops=times * flops,
            bytes=times * moved,
            cycles=times * (cycles or 0),
            seconds=times * (peak if cycles is None else cycles / chip.clock),
        )
    if sent := sum(one.seconds for one in collectives):
        sums["collective"]["seconds"] = sent
    if kernels := sums.get(KERNELS):
        kernels["flops"] = max(hardware - sum(one["flops"] for one in sums.values()), 0.0)
        kernels["seconds"] = max(kernels["seconds"], kernels["flops"] / chip.flops)
    rows = [Operations(kind=kind, **sum_) for kind, sum_ in sums.items()]
    return tuple(sorted(rows, key=lambda row: (-row.seconds, row.kind))), unknown


def _kind(one: Instruction) -> str:
    if one.op in _PREFETCH:
        return "prefetch"
    if costs.is_kernel(one):
        return KERNELS
    if costs.flops(one):
        return "matmul"
    if any(costs.kind_of_collective(each.op) for each in costs.parts_of(one)):
        return "collective"
    if one.fused:
        return "elementwise"
    return "copy" if one.op in _COPIES else "other"


def roofline_of(
    compute: float, operations: Iterable[Operations], sent: Iterable[Collective], chip: Chip
) -> Roofline:
    """Returns the least time of a step, whose FLOPs take `compute` seconds."""
    seconds = collections.Counter()
    for one in sent:
        seconds[one.slices > 1] += one.seconds
    return Roofline(
        compute=compute,
        memory=sum(one.bytes for one in operations) / chip.bandwidth,
        interconnect=seconds[False],
        network=seconds[True],
    )


def serial(operations: Iterable[Operations]) -> float:
    """Returns seconds of everything, one after the other; prefetches run beside the rest."""
    return sum(one.seconds for one in operations if one.kind != "prefetch")


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
    run, topology = plan.run, plan.topology
    ends = (fast, max(slow, fast))

    def rates(amount: float) -> tuple[float, float]:
        return amount / ends[1], amount / ends[0]

    hours = tuple(seconds * run.steps / 3600 for seconds in ends)
    cost, tokens = (plan.price or 0) * topology.chips, run.tokens_per_example
    return Projection(
        step_seconds=ends,
        mfu=rates(model_flops / (topology.size * topology.chip.flops)),
        examples_per_second=rates(run.batch_size),
        tokens_per_second=rates(run.batch_size * tokens) if tokens else None,
        hours=hours,
        usd=tuple(cost * each for each in hours) if cost else None,
    )
