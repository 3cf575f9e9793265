"""A plan as text for a terminal."""

import math
from collections.abc import Iterator, Sequence

from launch.plan.report import Plan

MOST = 12
"""Rows of collectives shown; the JSON has all."""


def text_of(plan: Plan) -> str:
    """Returns the plan as tables, 100 columns wide at most."""
    parts = [_head(plan)]
    if plan.refusal:
        parts.append(_refusal(plan))
    if plan.memory:
        parts.append(_memory(plan))
    if plan.flops:
        parts += [_flops(plan), _collectives(plan), _operations(plan), _projection(plan)]
    parts.append(_foot(plan))
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def amount(value: float) -> str:
    """Returns a number of bytes as "1.23 GiB"."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(max(abs(value), 1))) // 10, 4)
    return f"{value:.0f} B" if not power else f"{value / 2 ** (10 * power):.2f} {units[power]}"


def duration(seconds: float) -> str:
    """Returns seconds as "1.23 ms"."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def count(value: float) -> str:
    """Returns a number as "1.23e+15", or "4" where it is small."""
    return f"{value:,.0f}" if value < 1e6 else f"{value:.3e}"


def _head(plan: Plan) -> Iterator[str]:
    run, machine = plan.run, plan.machine
    mesh = " x ".join(f"{axis}={ways}" for axis, ways in run.mesh.items() if ways > 1)
    slices = f"{machine.slices} slices of " if machine.slices > 1 else ""
    rows = f"batch {run.batch_size:,}"
    if run.accumulation > 1:
        rows += f" in {run.accumulation} micro-batches"
    if run.tokens_per_example:
        rows += f" x {run.tokens_per_example:,} tokens"
    yield f"{run.name}: {run.parameters:,} parameters, {rows}, {run.steps:,} steps"
    devices = f"{machine.devices} device" + "s" * (machine.devices > 1)
    yield f"on {slices}{machine.topology}: {devices}, mesh {mesh or 'of one'}"
    if plan.basis == "analytic":
        yield "ANALYTIC ESTIMATE: memory and speed are calculated, not the compiler's"


def _refusal(plan: Plan) -> Iterator[str]:
    refusal = plan.refusal
    yield f"DOES NOT FIT: the compiler refuses the {refusal.program}."
    yield f"  {refusal.reason}"
    if refusal.needed and refusal.available:
        over = refusal.needed - refusal.available
        yield (
            f"  needed {amount(refusal.needed)}, available {amount(refusal.available)}: "
            f"{amount(over)} too much on each device"
        )
    for size, shape in refusal.largest:
        yield f"  {amount(size):>12}  {shape}"


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    yield "Memory on each device"
    rows = [
        ("parameters", memory.parameters),
        ("optimizer state", memory.optimizer_state),
        ("other state", memory.other_state),
        ("batch", memory.batch),
        ("padding of these", memory.padding),
        ("results", memory.results),
        ("activations and temporaries", memory.temporaries),
        ("program", memory.code),
        ("total", memory.total),
    ]
    for name, size in rows:
        yield f"  {name:28}{amount(size):>12}"
    left = memory.available - memory.total
    verdict = f"fits, {amount(left)} free" if left >= 0 else f"DOES NOT FIT by {amount(-left)}"
    yield f"  {'available':28}{amount(memory.available):>12}  {verdict}"
    if memory.host:
        yield f"  {'in host memory':28}{amount(memory.host):>12}"


def _flops(plan: Plan) -> Iterator[str]:
    flops = plan.flops
    yield "FLOPs of a step, all devices"
    yield f"  {'model':28}{count(flops.model):>12}"
    yield f"  {'hardware (recomputed too)':28}{count(flops.hardware):>12}"
    yield f"  {'in the compiled program':28}{count(flops.compiled):>12}"
    if flops.unseen:
        yield f"  {'in custom calls':28}{count(flops.unseen):>12}"


def _collectives(plan: Plan) -> Iterator[str]:
    if not plan.collectives:
        yield "Collectives: none"
        return
    total = sum(one.total for one in plan.collectives)
    yield f"Collectives of a step: {amount(total)} on each device"
    yield f"  {'kind':20}{'axes':22}{'network':9}{'bytes':>12}{'times':>8}{'total':>12}{'time':>10}"
    for one in plan.collectives[:MOST]:
        axes = ", ".join(one.axes) + (" *" if one.overlapped else "")
        yield (
            f"  {one.kind:20}{axes:22}{one.network:9}{amount(one.bytes):>12}{one.times:>8,}"
            f"{amount(one.total):>12}{duration(one.seconds):>10}"
        )
    rest = plan.collectives[MOST:]
    if rest:
        size, time = (sum(getattr(one, name) for one in rest) for name in ("total", "seconds"))
        yield f"  {f'{len(rest)} more':63}{'':8}{amount(size):>12}{duration(time):>10}"
    if any(one.overlapped for one in plan.collectives):
        yield "  * runs beside other work"


def _operations(plan: Plan) -> Iterator[str]:
    source = "the compiler's estimate" if plan.basis == "compiled" else "analytic estimate"
    yield f"Time of a step by operation, {source}"
    yield f"  {'kind':20}{'count':>10}{'FLOPs':>12}{'HBM':>12}{'cycles':>18}{'time':>10}"
    for one in plan.operations:
        yield (
            f"  {one.kind:20}{one.count:>10,}{count(one.flops):>12}{amount(one.bytes):>12}"
            f"{one.cycles:>18,}{duration(one.seconds):>10}"
        )
    kernels = [one for one in plan.operations if one.kind == "custom call"]
    for one in kernels:
        yield (
            f"  not seen by the compiler's estimate: {one.count:,} custom calls with "
            f"{count(plan.flops.unseen / plan.machine.devices)} FLOPs on each device"
        )
    if plan.unknown_loops:
        yield f"  {plan.unknown_loops} loop(s) of unknown length are counted as one turn"


def _projection(plan: Plan) -> Iterator[str]:
    roof, ends, run = plan.roofline, plan.projection, plan.run
    parts = {
        "compute": roof.compute,
        "memory": roof.memory,
        "interconnect": roof.interconnect,
        "network": roof.network,
    }
    yield "Roofline of a step: " + ", ".join(
        f"{name} {duration(time)}" for name, time in parts.items() if time
    )
    yield f"  bound by {roof.bound}"
    yield f"{'Projection':28}{'all overlaps':>16}{'nothing overlaps':>20}"
    fast, slow = ends.step_seconds
    rows = [("step", duration(fast), duration(slow)), _row("MFU", ends.mfu, ".1%")]
    rows.append(_row("examples/s", ends.examples_per_second, ",.1f"))
    if ends.tokens_per_second:
        rows.append(_row("tokens/s", ends.tokens_per_second, ",.0f"))
    form = ",.1f" if ends.hours[0] >= 1 else ".3g"
    rows.append(_row(f"hours of {run.steps:,} steps", ends.hours[::-1], form))
    if ends.usd:
        form = ",.2f" if ends.usd[0] >= 0.01 else ".2g"
        rows.append(_row("USD", ends.usd[::-1], form))
    for name, best, worst in rows:
        yield f"  {name:26}{best:>16}{worst:>20}"
    if ends.usd:
        machine = plan.machine
        price = f"USD {machine.price:g} a chip and hour"
        yield f"  {machine.chips} x {price} ({machine.price_source})"


def _row(name: str, ends: Sequence[float], form: str) -> tuple[str, str, str]:
    """Returns a name, and a low and a high end as texts, the high one first."""
    return name, format(ends[1], form), format(ends[0], form)


def _foot(plan: Plan) -> Iterator[str]:
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in plan.compile_seconds.items())
    versions = ", ".join(f"{name} {value}" for name, value in plan.versions.items())
    if plan.basis == "analytic":
        yield f"Analytic estimate, nothing was compiled ({versions}): see docs/plan.md, GPUs"
    else:
        yield f"Compiled: {times} ({versions})"
