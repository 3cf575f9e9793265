"""A plan as one HTML page: no scripts, nothing from the network, charts as inline SVG."""

import itertools
import pathlib
from collections.abc import Sequence
from html import escape

from launch.plan.report import Memory, Plan
from launch.plan.sections import Section, amount, duration, head, sections

STYLE = pathlib.Path(__file__).with_name("page.css")
WIDTH = 720


def html_of(plan: Plan) -> str:
    """Returns the plan as a page that stands alone; the same plan gives the same page."""
    title = f"Plan of {plan.run.name} on {plan.machine.topology}"
    parts = [_head(plan), *(_section(section, plan) for section in sections(plan))]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text()}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def _head(plan: Plan) -> str:
    what, where, verdict, *warning = map(escape, head(plan))
    name, _, rest = what.partition(": ")
    note = f'<p class="note" role="note">{" ".join(warning)}</p>\n' if warning else ""
    return (
        f"<header>\n<h1>{name} <small>{where}</small></h1>\n<p>{rest}</p>\n"
        f'<p class="verdict {"good" if plan.fits else "bad"}">{verdict}</p>\n{note}</header>'
    )


def _section(section: Section, plan: Plan) -> str:
    if section.title == "Projection":
        return _figures(section)
    parts, keys = [], []
    if section.title.startswith("Memory"):
        parts.append(_stack(section, plan.memory))
        keys = [f'<rect class="s{i}" width="10" height="10"/>' for i in range(len(section.chart))]
    elif section.chart:
        parts.append(_bars(section))
    parts += [_table(section, keys)] if section.rows else []
    parts += [f"<p>{escape(note)}</p>\n" for note in section.notes]
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{''.join(parts)}</section>"


def _figures(section: Section) -> str:
    """The figures that one looks for, as cards."""
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(' to '.join(ends))}</dd></div>"
        for name, *ends in section.rows
    )
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in section.notes)
    heads = " to ".join(section.columns[1:])
    return (
        f"<section>\n<h2>{section.title}: {heads}</h2>\n"
        f'<dl class="figures">{cards}</dl>\n{notes}</section>'
    )


def _table(section: Section, keys: Sequence[str]) -> str:
    """A table; `keys` are patches of a chart's colours, for the eye alone: names stand beside."""

    def cell(tag: str, i: int, text: str) -> str:
        kind = "" if section.left(i) else ' class="n"'
        return f"<{tag}{kind}>{text}</{tag[:2]}>"

    head = "".join(
        cell('th scope="col"', i, escape(name)) for i, name in enumerate(section.columns)
    )
    lines = []
    for key, row in itertools.zip_longest(keys, section.rows):
        patch = (
            f'<svg class="key" viewBox="0 0 10 10" aria-hidden="true">{key}</svg>' if key else ""
        )
        first, *rest = map(escape, row)
        cells = [cell("td", i, text) for i, text in enumerate((patch + first, *rest))]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"


def _stack(section: Section, memory: Memory) -> str:
    """One stacked bar, with a mark where what is available ends."""
    whole, x, bars = max(memory.capacity, memory.total), 0.0, []
    for i, (name, size) in enumerate(section.chart):
        wide = WIDTH * max(size, 0) / whole
        bars.append(
            f'<rect class="s{i}" x="{x:.2f}" y="24" width="{wide:.2f}" height="36">'
            f"<title>{escape(name)}: {amount(size)}</title></rect>"
        )
        x += wide
    limit = WIDTH * memory.available / whole
    anchor, place = ("end", limit - 6) if limit > WIDTH / 2 else ("start", limit + 6)
    marks = (
        f'<rect class="frame" fill="none" x="0.5" y="24.5" width="{WIDTH - 1}" height="35"/>'
        f'<line class="limit" x1="{limit:.2f}" x2="{limit:.2f}" y1="14" y2="68"/>'
        f'<text x="{place:.2f}" y="14" text-anchor="{anchor}">'
        f"available {amount(memory.available)}</text>"
        f'<text x="0" y="80">0</text>'
        f'<text x="{WIDTH}" y="80" text-anchor="end">{amount(whole)}</text>'
    )
    told = ", ".join(f"{name} {amount(size)}" for name, size in section.chart)
    return _svg(section.title, told, 84, "".join(bars) + marks)


def _bars(section: Section) -> str:
    """Horizontal bars of seconds."""
    left, width, step = 150, 460, 28
    longest = max(seconds for _, seconds in section.chart) or 1.0
    bars = []
    for i, (name, seconds) in enumerate(section.chart):
        y, wide = i * step + 4, width * seconds / longest
        bars.append(
            f'<text x="{left - 10}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="s0" x="{left}" y="{y}" width="{wide:.2f}" height="20"/>'
            f'<text x="{left + wide + 8:.2f}" y="{y + 15}">{duration(seconds)}</text>'
        )
    told = ", ".join(f"{name} {duration(seconds)}" for name, seconds in section.chart)
    return _svg(section.title, told, len(section.chart) * step + 4, "".join(bars))


def _svg(title: str, told: str, height: int, content: str) -> str:
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(told)}</desc>{content}</svg></figure>\n"
    )
