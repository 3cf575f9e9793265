"""A plan as one HTML page: no scripts, nothing from the network, charts as inline SVG."""

import collections
from collections.abc import Iterable, Sequence
from html import escape

from launch.plan.page import STYLE
from launch.plan.report import Memory, Plan
from launch.plan.text import amount, count, duration

MOST = 20
"""Rows of collectives shown; the JSON has all."""


def html_of(plan: Plan) -> str:
    """Returns the plan as a page that stands alone; the same plan gives the same page."""
    title = f"Plan of {plan.run.name} on {plan.machine.topology}"
    parts = [_head(plan), *_warning(plan), *_figures(plan), *_refusal(plan), *_memory(plan)]
    if plan.flops:
        parts += [_operations(plan), _roofline(plan), _collectives(plan), _flops(plan)]
    parts.append(_settings(plan))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def _head(plan: Plan) -> str:
    run, machine = plan.run, plan.machine
    verdict, kind = _verdict(plan)
    chips = f"{machine.chips:,} {machine.chip} chip{'s' * (machine.chips > 1)}"
    slices = f"{machine.slices} slices of " if machine.slices > 1 else ""
    mesh = " × ".join(f"{axis} {ways}" for axis, ways in run.mesh.items() if ways > 1)
    return (
        f"<header>\n<h1>{escape(run.name)} <small>on {slices}{escape(machine.topology)}</small>"
        f"</h1>\n<p>{run.parameters:,} parameters, {chips}, mesh {escape(mesh or 'of one')}"
        f"</p>\n"
        f'<p class="verdict {kind}">{escape(verdict)}</p>\n</header>'
    )


def _verdict(plan: Plan) -> tuple[str, str]:
    memory = plan.memory
    if memory is None:
        return f"Does not fit: the compiler refuses the {plan.refusal.program}", "bad"
    left = memory.available - memory.total
    if left < 0:
        return f"Does not fit, by {amount(-left)} on each device", "bad"
    return f"Fits, with {amount(left)} free on each device", "good"


def _warning(plan: Plan) -> list[str]:
    if plan.basis == "compiled":
        return []
    text = (
        "Analytic estimate: nothing was compiled. Bytes of parameters, optimizer state and batch "
        "are exact; activations and communication are derived from the step's own operations; "
        "the speed assumes a share of the chip's peak. See docs/plan.md, GPUs."
    )
    return [f'<p class="note" role="note">{text}</p>']


def _figures(plan: Plan) -> list[str]:
    """The figures that one looks for first, low to high."""
    ends, run = plan.projection, plan.run
    if ends is None:
        return []
    fast, slow = ends.step_seconds
    rows = [
        ("Step", f"{duration(fast)} to {duration(slow)}"),
        ("MFU", f"{ends.mfu[0]:.1%} to {ends.mfu[1]:.1%}"),
    ]
    if ends.tokens_per_second:
        rows.append(("Tokens per second", _range(ends.tokens_per_second, ",.0f")))
    else:
        rows.append(("Examples per second", _range(ends.examples_per_second, ",.1f")))
    hours = f"{_range(ends.hours, ',.1f')} hours"
    if ends.hours[0] < 1:
        hours = " to ".join(duration(3600 * hour) for hour in ends.hours)
    rows.append((f"All {run.steps:,} steps", hours))
    money = f"USD {_range(ends.usd, ',.2f')}" if ends.usd else "price not known"
    rows.append(("Cost", money))
    cards = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in rows)
    return [f'<dl class="figures">{cards}</dl>']


def _range(ends: Sequence[float], form: str) -> str:
    low, high = (format(end, form) for end in ends)
    return low if low == high else f"{low} to {high}"


def _refusal(plan: Plan) -> list[str]:
    refusal = plan.refusal
    if refusal is None:
        return []
    rows = [(amount(size), shape) for size, shape in refusal.largest]
    needed = ""
    if refusal.needed and refusal.available:
        needed = (
            f"<p>Needed {amount(refusal.needed)}, available {amount(refusal.available)}: "
            f"{amount(refusal.needed - refusal.available)} too much on each device.</p>"
        )
    table = _table(("size", "largest buffers"), rows, numbers=(0,)) if rows else ""
    return [_section("The compiler's reason", f"<p>{escape(refusal.reason)}</p>{needed}{table}")]


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    if memory is None:
        return []
    parts = [
        ("parameters", memory.parameters),
        ("optimizer state", memory.optimizer_state),
        ("activations and temporaries", memory.temporaries),
        ("batch", memory.batch),
        ("other state", memory.other_state),
        ("padding", memory.padding),
        ("results", memory.results),
        ("program", memory.code),
    ]
    chart = _stack(parts, memory)
    rows = [
        (_key(i) + escape(name), amount(size), _share(size, memory.available))
        for i, (name, size) in enumerate(parts)
        if size
    ]
    rows += [
        ("<b>total</b>", amount(memory.total), _share(memory.total, memory.available)),
        ("available to a program", amount(memory.available), ""),
        ("HBM of the device", amount(memory.capacity), ""),
    ]
    if memory.host:
        rows.append(("in host memory", amount(memory.host), ""))
    table = _table(("kind", "bytes", "of available"), rows, numbers=(1, 2), raw=True)
    return [_section("Memory on each device", chart + table)]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"


def _key(i: int) -> str:
    """A patch of the colour of series `i`, for the eye alone: the name stands beside it."""
    patch = f'<rect class="s{i}" width="10" height="10"/>'
    return f'<svg class="key" viewBox="0 0 10 10" aria-hidden="true">{patch}</svg>'


def _stack(parts: Sequence[tuple[str, int]], memory: Memory) -> str:
    """One stacked bar, with a mark where what is available ends."""
    width, whole = 720, max(memory.capacity, memory.total)
    x, bars = 0.0, []
    for i, (name, size) in enumerate(parts):
        if size <= 0:
            continue
        wide = width * size / whole
        bars.append(
            f'<rect class="s{i}" x="{x:.2f}" y="24" width="{wide:.2f}" height="36">'
            f"<title>{escape(name)}: {amount(size)}</title></rect>"
        )
        x += wide
    limit = width * memory.available / whole
    anchor, place = ("end", limit - 6) if limit > width / 2 else ("start", limit + 6)
    frame = f'<rect class="frame" fill="none" x="0.5" y="24.5" width="{width - 1}" height="35"/>'
    marks = (
        f'<line class="limit" x1="{limit:.2f}" x2="{limit:.2f}" y1="14" y2="68"/>'
        f'<text x="{place:.2f}" y="14" text-anchor="{anchor}">'
        f"available {amount(memory.available)}</text>"
        f'<text x="0" y="80">0</text>'
        f'<text x="{width}" y="80" text-anchor="end">{amount(whole)}</text>'
    )
    text = f"{amount(memory.total)} of {amount(memory.available)}: " + ", ".join(
        f"{name} {amount(size)}" for name, size in parts if size > 0
    )
    return _svg("Memory by kind against the device's HBM", text, 84, frame + "".join(bars) + marks)


def _operations(plan: Plan) -> str:
    source = "the compiler's estimate" if plan.basis == "compiled" else "an analytic estimate"
    rows = [(one.kind, one.seconds) for one in plan.operations]
    table = _table(
        ("kind", "count", "FLOPs", "HBM traffic", "time"),
        [
            (one.kind, f"{one.count:,}", count(one.flops), amount(one.bytes), duration(one.seconds))
            for one in plan.operations
        ],
        numbers=(1, 2, 3, 4),
    )
    lead = f"<p>Each device, one after the other: {source}.</p>"
    return _section("Time by operation group", lead + _bars("Time by operation", rows) + table)


def _roofline(plan: Plan) -> str:
    roof = plan.roofline
    rows = list(vars(roof).items())
    lead = (
        "<p>The least time of a step for each part of the machine at its peak. "
        f"Bound by <b>{escape(roof.bound)}</b>.</p>"
    )
    table = _table(
        ("part", "time", "of the longest"),
        [(name, duration(s), _share(s, roof.least or 1)) for name, s in rows],
        numbers=(1, 2),
    )
    return _section("Roofline", lead + _bars("Roofline", rows) + table)


def _bars(title: str, rows: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars of seconds."""
    left, width, step = 150, 460, 28
    longest = max((seconds for _, seconds in rows), default=0.0) or 1.0
    bars = []
    for i, (name, seconds) in enumerate(rows):
        y, wide = i * step + 4, width * seconds / longest
        bars.append(
            f'<text x="{left - 10}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="s0" x="{left}" y="{y}" width="{wide:.2f}" height="20"/>'
            f'<text x="{left + wide + 8:.2f}" y="{y + 15}">{duration(seconds)}</text>'
        )
    text = ", ".join(f"{name} {duration(seconds)}" for name, seconds in rows)
    return _svg(title, text, len(rows) * step + 4, "".join(bars))


def _svg(title: str, text: str, height: int, content: str) -> str:
    return (
        f'<figure><svg viewBox="0 0 720 {height}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(text)}</desc>{content}</svg></figure>\n"
    )


def _collectives(plan: Plan) -> str:
    if not plan.collectives:
        return _section("Collectives", "<p>None: nothing is sent between devices.</p>")
    totals: dict = collections.defaultdict(lambda: [0, 0, 0.0])
    for one in plan.collectives:
        sums = totals[", ".join(one.axes) or "none", one.kind, one.network]
        for i, value in enumerate((one.times, one.total, one.seconds)):
            sums[i] += value
    ordered = sorted(totals.items(), key=lambda item: (-item[1][2], item[0]))
    rows = [
        (*key, f"{times:,}", amount(size), duration(seconds))
        for key, (times, size, seconds) in ordered[:MOST]
    ]
    heads = ("axes", "kind", "network", "times", "bytes", "time")
    lead = "<p>In a step, on each device; bytes are of the gathered or reduced whole.</p>"
    if len(ordered) > MOST:
        lead += f"<p>The slowest {MOST} of {len(ordered)}.</p>"
    return _section("Collectives by mesh axis", lead + _table(heads, rows, numbers=(3, 4, 5)))


def _flops(plan: Plan) -> str:
    flops = plan.flops
    rows = [
        ("model", count(flops.model)),
        ("hardware, with what is computed again", count(flops.hardware)),
    ]
    if plan.basis == "compiled":
        rows.append(("in the compiled program", count(flops.compiled)))
    if flops.unseen:
        rows.append(("in custom calls", count(flops.unseen)))
    return _section("FLOPs of a step, all devices", _table(("", "FLOPs"), rows, numbers=(1,)))


def _settings(plan: Plan) -> str:
    run, machine = plan.run, plan.machine
    price = "not known" if machine.price is None else f"USD {machine.price:g} a chip and hour"
    rows = [
        ("config", run.config or "-"),
        *((f"--config.{path}", text) for path, text in run.overrides.items()),
        ("batch", f"{run.batch_size:,} examples"),
        ("accumulation", f"{run.accumulation}"),
        ("tokens of an example", f"{run.tokens_per_example or '-'}"),
        ("mesh", ", ".join(f"{axis}={ways}" for axis, ways in run.mesh.items())),
        ("price", f"{price} ({machine.price_source})"),
        ("peak of a device", f"{machine.peak_flops:.4g} FLOP/s, bfloat16"),
        ("basis", plan.basis),
        *plan.versions.items(),
    ]
    return _section("Settings", _table(("setting", "value"), rows))


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}</section>"


def _table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Sequence[int] = (),
    raw: bool = False,
) -> str:
    """A table; columns in `numbers` are set flush right, `raw` cells are HTML already."""

    def cell(tag: str, i: int, text: str) -> str:
        kind = ' class="n"' if i in numbers else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{kind}>{text if raw else escape(str(text))}</{tag}>"

    head = "".join(cell("th", i, name) for i, name in enumerate(heads))
    body = "\n".join(
        "<tr>" + "".join(cell("td", i, text) for i, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
