"""A plan as text for a terminal."""

from collections.abc import Iterator

from launch.plan.report import Plan
from launch.plan.sections import Section, head, sections


def text_of(plan: Plan) -> str:
    """Returns the plan as tables, 100 columns wide at most."""
    parts = [head(plan), *map(_lines, sections(plan))]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _lines(section: Section) -> Iterator[str]:
    yield section.title
    table = [section.columns, *section.rows] if section.rows else []
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    for row in table:
        cells = [
            cell.ljust(width) if section.left(i) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join(cells)).rstrip()
    yield from (f"  {note}" for note in section.notes)
