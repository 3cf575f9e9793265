"""What a plan shows, as sections of tables: `launch.plan.text` and `launch.plan.html` draw them."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from launch.plan.report import Plan

MOST = 12
"""Rows of collectives shown; the JSON has all."""

_PRICED = (
    "ESTIMATE: compiled by the TPU's compiler for as many TPUs, which stand in. Memory, work and",
    "what is sent are theirs; times are by the GPU's figures, and products are taken to reach a",
    "share of its peak: see docs/plan.md, GPUs.",
)

_WORDS = frozenset(("", "kind", "part", "axes", "network", "largest buffers", "setting", "value"))
"""Columns of words, set flush left; the others are numbers."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A table with a title.

    Attributes:
      title: what it is of.
      columns: heads; "" for none.
      rows: cells as text, one for each column.
      notes: lines below.
      chart: (name, length from 0 to 1, what it says) of bars that are drawn.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]] = ()
    notes: Sequence[str] = ()
    chart: tuple[tuple[str, float, str], ...] = ()

    def left(self, column: int) -> bool:
        """Whether a column is of words, not numbers."""
        return self.columns[column] in _WORDS


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


def head(plan: Plan) -> tuple[str, ...]:
    """Returns what is planned, on what, whether it fits, and how far to believe it, as lines."""
    run, machine = plan.run, plan.machine
    mesh = " x ".join(f"{axis}={ways}" for axis, ways in run.mesh.items() if ways > 1)
    slices = f"{machine.slices} slices of " if machine.slices > 1 else ""
    rows = f"batch {run.batch_size:,}"
    if run.accumulation > 1:
        rows += f" in {run.accumulation} micro-batches"
    if run.tokens_per_example:
        rows += f" x {run.tokens_per_example:,} tokens"
    devices = f"{machine.devices} device" + "s" * (machine.devices > 1)
    return (
        f"{run.name}: {run.parameters:,} parameters, {rows}, {run.steps:,} steps",
        f"on {slices}{machine.topology}: {devices}, mesh {mesh or 'of one'}",
        verdict(plan),
        *(_PRICED if plan.basis == "priced" else ()),
    )


def verdict(plan: Plan) -> str:
    """Returns whether it fits, in a sentence."""
    memory = plan.memory
    if memory is None:
        return f"DOES NOT FIT: the compiler refuses the {plan.refusal.program}."
    left = memory.available - memory.total
    if left < 0:
        return f"DOES NOT FIT, by {amount(-left)} on each device."
    return f"Fits, with {amount(left)} free on each device."


def sections(plan: Plan) -> Iterator[Section]:
    """Yields the sections of a plan; what the compiler refused has fewer."""
    if plan.refusal:
        yield _refusal(plan)
    if plan.memory:
        yield _memory(plan)
    if plan.flops:
        yield from (_flops(plan), _collectives(plan), _operations(plan))
        yield from (_roofline(plan), _projection(plan))
    yield _settings(plan)


def _refusal(plan: Plan) -> Section:
    refusal, notes = plan.refusal, [plan.refusal.reason]
    if refusal.needed and refusal.available:
        over = refusal.needed - refusal.available
        notes.append(
            f"needed {amount(refusal.needed)}, available {amount(refusal.available)}: "
            f"{amount(over)} too much on each device"
        )
    rows = [(shape, amount(size)) for size, shape in refusal.largest]
    return Section("The compiler's reason", ("largest buffers", "size"), rows, notes)


def _bars(parts: Iterable[tuple[str, float]], whole: float, told: Callable[[float], str]):
    """Returns a chart of (name, value), as shares of `whole`."""
    return tuple((name, max(value, 0) / (whole or 1), told(value)) for name, value in parts)


def _memory(plan: Plan) -> Section:
    memory = plan.memory
    parts = (
        ("parameters", memory.parameters),
        ("optimizer state", memory.optimizer_state),
        ("other state", memory.other_state),
        ("batch", memory.batch),
        ("padding of these", memory.padding),
        ("results", memory.results),
        ("activations and temporaries", memory.temporaries),
        ("program", memory.code),
    )
    around = (
        ("total", memory.total),
        ("available to a program", memory.available),
        ("HBM of the device", memory.capacity),
        *([("in host memory", memory.host)] if memory.host else []),
    )
    rows = [(name, amount(size), f"{size / memory.available:.1%}") for name, size in parts + around]
    chart = _bars(parts, max(memory.capacity, memory.total), amount)
    return Section("Memory on each device", ("kind", "bytes", "of available"), rows, chart=chart)


def _flops(plan: Plan) -> Section:
    flops = plan.flops
    rows = [
        ("model", count(flops.model)),
        ("hardware (recomputed too)", count(flops.hardware)),
        ("in the compiled program", count(flops.compiled)),
        *([("in custom calls", count(flops.unseen))] if flops.unseen else []),
    ]
    return Section("FLOPs of a step, all devices", ("", "FLOPs"), rows)


def _collectives(plan: Plan) -> Section:
    found, title = plan.collectives, "Collectives of a step"
    if not found:
        return Section(title, (), notes=("None: nothing is sent between devices.",))
    notes = [f"{amount(sum(one.total for one in found))} on each device"]
    if any(one.overlapped for one in found):
        notes.append("* runs beside other work")
    rows = [
        (
            one.kind,
            ", ".join(one.axes) + (" *" if one.overlapped else ""),
            one.network,
            amount(one.bytes),
            f"{one.times:,}",
            amount(one.total),
            duration(one.seconds),
        )
        for one in found[:MOST]
    ]
    if rest := found[MOST:]:
        size, time = (sum(getattr(one, name) for one in rest) for name in ("total", "seconds"))
        rows.append((f"{len(rest)} more", "", "", "", "", amount(size), duration(time)))
    columns = ("kind", "axes", "network", "bytes", "times", "total", "time")
    return Section(title, columns, rows, notes)


def _operations(plan: Plan) -> Section:
    source = "the compiler's estimate" if plan.basis == "compiled" else "at the chip's peaks"
    rows = [
        (
            one.kind,
            f"{one.count:,}",
            count(one.flops),
            amount(one.bytes),
            f"{one.cycles:,}",
            duration(one.seconds),
        )
        for one in plan.operations
    ]
    notes = []
    if plan.flops.unseen:
        unseen = count(plan.flops.unseen / plan.machine.devices)
        notes.append(f"custom calls are not in the compiler's estimate: {unseen} FLOPs")
    if plan.unknown_loops:
        notes.append(f"{plan.unknown_loops} loop(s) of unknown length are counted as one turn")
    parts = [(one.kind, one.seconds) for one in plan.operations]
    chart = _bars(parts, max((seconds for _, seconds in parts), default=0), duration)
    columns = ("kind", "count", "FLOPs", "HBM", "cycles", "time")
    return Section(f"Time of a step by operation, {source}", columns, rows, notes, chart)


def _roofline(plan: Plan) -> Section:
    parts, roof = vars(plan.roofline).items(), plan.roofline
    rows = [(name, duration(s), f"{s / (roof.least or 1):.1%}") for name, s in parts]
    chart, columns = _bars(parts, roof.least, duration), ("part", "time", "of the longest")
    return Section("Roofline of a step", columns, rows, (f"bound by {roof.bound}",), chart)


def _projection(plan: Plan) -> Section:
    ends, run, machine = plan.projection, plan.run, plan.machine

    def row(name: str, ends: Sequence[float], form: str) -> tuple[str, str, str]:
        return name, *(format(end, form) for end in ends)

    rows = [("step", *map(duration, ends.step_seconds)), row("MFU", ends.mfu[::-1], ".1%")]
    rows.append(row("examples/s", ends.examples_per_second[::-1], ",.1f"))
    if ends.tokens_per_second:
        rows.append(row("tokens/s", ends.tokens_per_second[::-1], ",.0f"))
    form = ",.1f" if ends.hours[0] >= 1 else ".3g"
    rows.append(row(f"hours of {run.steps:,} steps", ends.hours, form))
    notes = []
    if ends.usd:
        rows.append(row("USD", ends.usd, ",.2f" if ends.usd[0] >= 0.01 else ".2g"))
        price = f"USD {machine.price:g} a chip and hour"
        notes.append(f"{machine.chips} x {price} ({machine.price_source})")
    return Section("Projection", ("", "all overlaps", "nothing overlaps"), rows, notes)


def _settings(plan: Plan) -> Section:
    run, machine = plan.run, plan.machine
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in plan.compile_seconds.items())
    rows = [
        ("config", run.config or "-"),
        *((f"--config.{path}", text) for path, text in run.overrides.items()),
        ("peak of a device", f"{machine.peak_flops:.4g} FLOP/s, bfloat16"),
        ("versions", ", ".join(f"{name} {value}" for name, value in plan.versions.items())),
        ("compiled in", times),
    ]
    return Section("Settings", ("setting", "value"), rows)
