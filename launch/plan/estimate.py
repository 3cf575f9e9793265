"""From a parsed module to operations by kind, a roofline, and a projection of the run."""

import collections
import dataclasses
from collections.abc import Iterable

from launch.plan import costs
from launch.plan.hlo import Computation, Instruction
from launch.plan.loops import executed, trip_count
from launch.plan.report import Collective, Operations, Plan, Projection, Roofline, StepFlops
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
KERNELS = "custom call"  # the kind of operation that the compiler cannot look into


def answered(
    plan: Plan, entry: Computation, sent: tuple[Collective, ...], hardware: float, model: float
) -> Plan:
    """Returns a plan with what its compiled step says, and what follows for speed and money.

    `hardware` and `model` are FLOPs of a step over all devices, as `lsm.cost` counts them.
    """
    chip, devices = plan.topology.chip, plan.topology.size
    operations, loops = operations_of(entry, sent, hardware / devices, chip)
    kernels = sum(one.flops for one in operations if one.kind == KERNELS) * devices
    seen = sum(one.flops for one in operations) * devices - kernels
    roofline = Roofline(
        compute=max(hardware, seen) / devices / chip.flops,
        memory=sum(one.bytes for one in operations) / chip.bandwidth,
        interconnect=sum(one.seconds for one in sent if one.slices == 1),
        network=sum(one.seconds for one in sent if one.slices > 1),
    )
    if plan.basis == "compiled":  # prefetches run beside the rest, whatever overlaps
        slow = sum(one.seconds for one in operations if one.kind != "prefetch")
        ends = roofline.least, max(roofline.least, slow)
    else:
        ends = assumed_ends(roofline, chip)
    return dataclasses.replace(
        plan,
        flops=StepFlops(model=model, hardware=hardware, compiled=seen, custom_calls=kernels),
        collectives=sent,
        operations=operations,
        unknown_loops=loops,
        roofline=roofline,
        projection=_projection(plan, model, ends),
    )


def operations_of(
    entry: Computation, sent: Iterable[Collective], hardware: float, chip: Chip
) -> tuple[tuple[Operations, ...], int]:
    """Returns what a module does on one device, and its number of loops without a length.

    The compiler's cycles count where `chip` has the clock. Collectives take the time of `sent`, and
    custom calls do, at the peak, what of the `hardware` FLOPs is not seen elsewhere.
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
    if time := sum(one.seconds for one in sent):
        sums["collective"]["seconds"] = time
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


def assumed_ends(roofline: Roofline, chip: Chip) -> tuple[float, float]:
    """Returns the time of a step where there are no cycles: products at a share of the peak.

    From efficient products with all hidden behind the longest part, to inefficient ones with
    nothing hidden that is sent.
    """
    low, high = EFFICIENCY.get(chip.name, OTHERS)
    sent = roofline.interconnect + roofline.network
    fast = max(roofline.compute / high, roofline.memory, roofline.interconnect, roofline.network)
    return fast, max(roofline.compute / low, roofline.memory) + sent


def _projection(plan: Plan, model_flops: float, ends: tuple[float, float]) -> Projection:
    """Returns speed, time and money of a plan's run, from the ends of the seconds of a step."""
    run, topology = plan.run, plan.topology
    cost = None if plan.price is None else plan.price * topology.chips
    tokens = run.tokens_per_example

    def rates(amount: float) -> tuple[float, float]:
        return amount / ends[1], amount / ends[0]

    hours = tuple(seconds * run.steps / 3600 for seconds in ends)
    return Projection(
        step_seconds=ends,
        mfu=rates(model_flops / (topology.size * topology.chip.flops)),
        examples_per_second=rates(run.batch_size),
        tokens_per_second=rates(run.batch_size * tokens) if tokens else None,
        hours=hours,
        usd=None if cost is None else tuple(cost * each for each in hours),
    )
