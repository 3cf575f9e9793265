"""What a plan shows, as sections of tables: `launch.plan.text` and `launch.plan.html` draw them."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from launch.plan.report import Plan

MOST = 12  # rows of collectives shown; the JSON has all
_PRICED = (
    "ESTIMATE: compiled by the TPU's compiler for as many TPUs, which stand in. Memory, work and",
    "what is sent are theirs; times are by the GPU's figures, and products are taken to reach a",
    "share of its peak: see docs/plan.md, GPUs.",
)


@dataclasses.dataclass(frozen=True)
class Section:
    """A table with a title."""

    title: str  # what it is of
    columns: tuple[str, ...]  # heads; "" for none
    rows: Sequence[tuple[str, ...]] = ()  # cells as text, one for each column
    notes: Sequence[str] = ()  # lines below
    bars: Sequence[float] = ()  # 0 to 1, of the first rows; they say their first two cells

    def left(self, column: int) -> bool:
        """Whether a column is of words, not numbers, as its first cell tells."""
        return not self.rows[0][column][:1].isdigit()


def amount(value: float) -> str:
    """Returns a number of bytes as "1.23 GiB"."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(max(abs(value), 1))) // 10, 4)
    return f"{value:.0f} B" if not power else f"{value / 2 ** (10 * power):.2f} {units[power]}"


def duration(seconds: float) -> str:
    """Returns seconds as "1.23 ms"."""
    factor, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    return f"{seconds * factor:.3g} {unit}"


def count(value: float) -> str:
    """Returns a number as "1.23e+15", or "4" where it is small."""
    return f"{value:,.0f}" if value < 1e6 else f"{value:.3e}"


def head(plan: Plan) -> tuple[str, ...]:
    """Returns what is planned, on what, whether it fits, and how far to believe it, as lines."""
    run, topology = plan.run, plan.topology
    mesh = " x ".join(f"{axis}={ways}" for axis, ways in run.mesh.items() if ways > 1)
    slices = f"{topology.slices} slices of " if topology.slices > 1 else ""
    parts = f" in {run.accumulation} micro-batches" if run.accumulation > 1 else ""
    tokens = f" x {run.tokens_per_example:,} tokens" if run.tokens_per_example else ""
    rows = f"batch {run.batch_size:,}{parts}{tokens}"
    met = f" ({run.active_parameters:,} a token)" if run.active_parameters < run.parameters else ""
    devices = f"{topology.size} device{'s' * (topology.size > 1)}"
    return (
        f"{run.name}: {run.parameters:,} parameters{met}, {rows}, {run.steps:,} steps",
        f"on {slices}{topology.name}: {devices}, mesh {mesh or 'of one'}",
        _verdict(plan),
        *(_PRICED if plan.basis == "priced" else ()),
    )


def _verdict(plan: Plan) -> str:
    if plan.refusal:
        return f"DOES NOT FIT: the compiler refuses the {plan.refusal.program}."
    left = plan.memory.available - plan.memory.total
    if left < 0:
        return f"DOES NOT FIT, by {amount(-left)} on each device."
    return f"Fits, with {amount(left)} free on each device."


def sections(plan: Plan) -> Iterator[Section]:
    """Yields the sections of a plan; what the compiler refused has fewer."""
    if plan.refusal:
        yield _refusal(plan)
    else:
        yield from (_memory(plan), _flops(plan), _collectives(plan), _operations(plan))
        yield from (_roofline(plan), _projection(plan))
    yield _settings(plan)


def _refusal(plan: Plan) -> Section:
    no, notes = plan.refusal, [plan.refusal.reason]
    if no.needed and no.available:
        there = f"needed {amount(no.needed)}, available {amount(no.available)}"
        notes.append(f"{there}: {amount(no.needed - no.available)} too much on each device")
    rows = [(shape, amount(size)) for size, shape in no.largest]
    return Section("The compiler's reason", ("largest buffers", "size"), rows, notes)


def _memory(plan: Plan) -> Section:
    memory, parts = plan.memory, plan.memory.parts
    around = {name: getattr(memory, name) for name in ("total", "available", "capacity", "host")}
    rows = [
        (name.replace("_", " "), amount(size), f"{size / memory.available:.1%}")
        for name, size in {**parts, **around}.items()
        if size or name != "host"
    ]
    whole = max(memory.capacity, memory.total)
    bars = [max(size, 0) / whole for size in parts.values()]
    return Section("Memory on each device", ("kind", "bytes", "of available"), rows, bars=bars)


def _flops(plan: Plan) -> Section:
    flops = vars(plan.flops).items()
    rows = [(name.replace("_", " "), count(n)) for name, n in flops if n or name != "custom_calls"]
    return Section("FLOPs of a step, all devices", ("", "FLOPs"), rows)


def _collectives(plan: Plan) -> Section:
    found, title = plan.collectives, "Collectives of a step"
    if not found:
        return Section(title, (), notes=("None: nothing is sent between devices.",))
    notes = [f"{amount(sum(one.total for one in found))} on each device"]
    if any(one.overlapped for one in found):
        notes.append("* runs beside other work")
    rows = []
    for one in found[:MOST]:
        axes = ", ".join(one.axes) + (" *" if one.overlapped else "")
        sizes = amount(one.bytes), f"{one.times:,}", amount(one.total), duration(one.seconds)
        rows.append((one.kind, axes, one.network, *sizes))
    if rest := found[MOST:]:
        size, time = (sum(getattr(one, name) for one in rest) for name in ("total", "seconds"))
        rows.append((f"{len(rest)} more", "", "", "", "", amount(size), duration(time)))
    columns = ("kind", "axes", "network", "bytes", "times", "total", "time")
    return Section(title, columns, rows, notes)


def _operations(plan: Plan) -> Section:
    rows = []
    for one in plan.operations:
        work = count(one.flops), amount(one.bytes), f"{one.cycles:,}"
        rows.append((one.kind, duration(one.seconds), f"{one.count:,}", *work))
    notes = []
    if plan.flops.custom_calls:
        unseen = count(plan.flops.custom_calls / plan.topology.size)
        notes.append(f"custom calls are not in the compiler's estimate: {unseen} FLOPs")
    if plan.unknown_loops:
        notes.append(f"{plan.unknown_loops} loop(s) of unknown length are counted as one turn")
    if plan.uncounted:
        notes.append(f"not counted, so that a step takes longer: {', '.join(plan.uncounted)}")
    source = "the compiler's estimate" if plan.basis == "compiled" else "at the chip's peaks"
    title, columns = f"Time of a step by operation, {source}", "kind time count FLOPs HBM cycles"
    bars = _shares([one.seconds for one in plan.operations])
    return Section(title, tuple(columns.split()), rows, notes, bars)


def _shares(seconds: Sequence[float]) -> list[float]:
    longest = max(seconds, default=0) or 1
    return [each / longest for each in seconds]


def _roofline(plan: Plan) -> Section:
    parts = vars(plan.roofline)
    bars = _shares(list(parts.values()))
    cells = zip(parts.items(), bars, strict=True)
    rows = [(name, duration(time), f"{share:.1%}") for (name, time), share in cells]
    columns, notes = ("part", "time", "of the longest"), (f"bound by {plan.roofline.bound}",)
    return Section("Roofline of a step", columns, rows, notes, bars)


def _projection(plan: Plan) -> Section:
    ends, run = plan.projection, plan.run
    small, cheap = ends.hours[0] < 1, ends.usd and ends.usd[0] < 0.01
    shown = (
        ("MFU", ends.mfu[::-1], ".1%"),
        ("examples/s", ends.examples_per_second[::-1], ",.1f"),
        ("tokens/s", (ends.tokens_per_second or ())[::-1], ",.0f"),
        (f"hours of {run.steps:,} steps", ends.hours, ".3g" if small else ",.1f"),
        ("USD", ends.usd, ".2g" if cheap else ",.2f"),
    )
    rows = [("step", *map(duration, ends.step_seconds))]
    rows += [(name, *(format(end, form) for end in pair)) for name, pair, form in shown if pair]
    notes = []
    if ends.usd is not None:
        price = f"{plan.topology.chips} x USD {plan.price:g} a chip and hour"
        notes.append(f"{price} ({plan.price_source})")
    if run.buckets:
        notes.append("every batch is taken to be of the widest bucket: most take less")
    return Section("Projection", ("", "all overlaps", "nothing overlaps"), rows, notes)


def _settings(plan: Plan) -> Section:
    run, times, versions = plan.run, plan.compile_seconds, plan.topology.versions
    rows = [
        ("config", run.config or "-"),
        *((f"--config.{path}", text) for path, text in run.overrides.items()),
        ("peak of a device", f"{plan.topology.chip.flops:.4g} FLOP/s, bfloat16"),
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items())),
        ("compiled in", ", ".join(f"{name} {value:.1f} s" for name, value in times.items())),
    ]
    return Section("Settings", ("setting", "value"), rows)
