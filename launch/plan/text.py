"""A plan as text for a terminal."""

from launch.plan.report import Plan
from launch.plan.sections import Section, head, sections


def text_of(plan: Plan) -> str:
    """Returns the plan as tables, 100 columns wide at most."""
    return "\n\n".join(("\n".join(head(plan)), *map(text_of_section, sections(plan)))) + "\n"


def text_of_section(section: Section) -> str:
    """Returns a table under its title, without a line end."""
    lines = [section.title]
    table = [section.columns, *section.rows] if section.rows else []
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    for row in table:
        cells = [
            cell.ljust(width) if section.left(i) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join([*lines, *(f"  {note}" for note in section.notes)])
