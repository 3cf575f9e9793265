"""A plan as one HTML page: no scripts, nothing from the network, charts as inline SVG."""

import pathlib
import string
from html import escape

from launch.plan.report import Plan
from launch.plan.sections import Section, head, sections

PAGE = string.Template(pathlib.Path(__file__).with_name("page.html").read_text())
NAMES, BARS, WIDTH, STEP = 200, 400, 720, 28
"""Pixels of a chart: left of the bars, the longest bar, all; from one bar to the next."""


def html_of(plan: Plan) -> str:
    """Returns the plan as a page that stands alone; the same plan gives the same page."""
    what, where, verdict, *warning = map(escape, head(plan))
    return PAGE.substitute(
        title=escape(f"Plan of {plan.run.name} on {plan.topology.name}"),
        what=what,
        where=where,
        verdict=verdict,
        kind="good" if plan.fits else "bad",
        note=f'<p class="note" role="note">{" ".join(warning)}</p>\n' if warning else "",
        sections="\n".join(map(_section, sections(plan))),
    )


def _section(section: Section) -> str:
    chart = _chart(section) if section.bars else ""
    table = _table(section) if section.rows else ""
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in section.notes)
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{chart}{table}{notes}</section>"


def _table(section: Section) -> str:
    def line(tag: str, cells: tuple[str, ...]) -> str:
        kinds = ["" if section.left(i) else ' class="n"' for i in range(len(cells))]
        texts = zip(kinds, map(escape, cells), strict=True)
        return "<tr>" + "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in texts) + "</tr>"

    head, body = line("th", section.columns), "\n".join(line("td", row) for row in section.rows)
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"


def _chart(section: Section) -> str:
    """A bar for each row that the section draws, as long as it says."""
    bars, told = [], []
    for i, (share, (name, text, *_)) in enumerate(zip(section.bars, section.rows, strict=False)):
        y, wide = i * STEP + 4, BARS * share
        bars.append(
            f'<text x="{NAMES - 10}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{NAMES}" y="{y}" width="{wide:.2f}" height="20"/>'
            f'<text x="{NAMES + wide + 8:.2f}" y="{y + 15}">{text}</text>'
        )
        told.append(f"{name} {text}")
    size = f"0 0 {WIDTH} {len(bars) * STEP + 4}"
    words = f"<title>{escape(section.title)}</title><desc>{escape(', '.join(told))}</desc>"
    drawn = words + "".join(bars)
    return f'<figure><svg viewBox="{size}" role="img">{drawn}</svg></figure>\n'
