"""A chain's rows for people: a line each, a table, and a picture of what is gained and lost."""

from collections.abc import Sequence
from typing import Any

from lsm.compress.measure import BATCHES, Latency
from lsm.compress.recipe import Recipe
from lsm.compress.rows import Row, lost
from lsm.evaluate.drawing import figure_of, png

_HEAD = ("link", "{metric}", "points lost", "parameters", "not 0", "bytes", "compressed")
_TIMES = "batch of {rows}: ms (share), p95"


def line(recipe: Recipe, first: Row, row: Row) -> str:
    """Returns what is said of a link as it is done; in brackets shares of the first row's."""
    size = row.size.bytes
    speed = [f"{row.latency[n].median:.3f} ms for {n} ({row.ratios[n]:.2f})" for n in BATCHES]
    took = [] if row.seconds is None else [f"{row.seconds:.1f} s"]
    value, share = f"{recipe.metric} {row.value:.4f}", size / first.size.bytes
    return f"{row.name}: {', '.join([value, f'{size:,} bytes ({share:.3f})', *speed, *took])}"


def cells(recipe: Recipe, rows: Sequence[Row]) -> list[list[str]]:
    """Returns the table, its head first."""
    head = [name.format(metric=f"{recipe.split} {recipe.metric}") for name in _HEAD]
    made = [[*head, *(_TIMES.format(rows=n) for n in BATCHES), "took"]]
    for row in rows:
        size = row.size
        made.append(
            [
                row.name,
                f"{row.value:.4f}",
                f"{lost(recipe, rows[0], row):.2f}",
                f"{size.parameters:,}",
                f"{size.nonzero / size.parameters:.1%}",
                f"{size.bytes:,} ({size.bytes / rows[0].size.bytes:.3f})",
                f"{size.compressed:,} ({size.compressed / rows[0].size.compressed:.3f})",
                *(_time(rows[0].latency[n], row.latency[n]) for n in BATCHES),
                "" if row.seconds is None else f"{row.seconds:.1f} s",
            ]
        )
    return made


def _time(first: Latency, this: Latency) -> str:
    return f"{this.median:.3f} ({this.median / first.median:.3f}), {this.p95:.3f}"


def text(recipe: Recipe, rows: Sequence[Row]) -> str:
    """Returns the table in columns, for a terminal."""
    table = cells(recipe, rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in table]
    for row, plain in zip(lines, table, strict=True):
        row[0] = plain[0].ljust(widths[0])
    return "\n".join("  ".join(row).rstrip() for row in lines)


def markdown(recipe: Recipe, rows: Sequence[Row]) -> str:
    """Returns the table as a page, with what its columns mean."""
    head, *body = cells(recipe, rows)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    table = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    return (
        f"{table}\n\n"
        f"Points are hundredths of {recipe.metric}, on all of the {recipe.split} split. In "
        "brackets are shares of the first row's. Bytes are those of all arrays as safetensors hold "
        "them; compressed by DEFLATE (zlib, level 6). Times are of the compiled forward pass, the "
        "median and the 95th percentile, all rows in turn on the same machine.\n"
    )


def picture(recipe: Recipe, rows: Sequence[Row]) -> bytes:
    """Returns as PNG the metric against size, and against the time of a batch."""
    figure = figure_of(11, 4.2, "constrained")
    panels = [
        ("bytes", {"as they are": [r.size.bytes for r in rows],
                   "compressed": [r.size.compressed for r in rows]}),
        ("milliseconds", {f"batch of {n}": [r.latency[n].median for r in rows] for n in BATCHES}),
    ]  # fmt: skip
    for place, (label, lines) in enumerate(panels, 1):
        axes = figure.add_subplot(1, 2, place)
        for color, (name, values) in zip(("#4477aa", "#cc6633"), lines.items(), strict=True):
            _draw(axes, values, rows, color, name)
        axes.set(xscale="log", xlabel=label, ylabel=f"{recipe.split} {recipe.metric}")
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return png(figure)


def _draw(axes: Any, values: Sequence[float], rows: Sequence[Row], color: str, name: str) -> None:
    """Draws the links in their order, each with its name."""
    heights = [row.value for row in rows]
    axes.plot(values, heights, color=color, marker="o", markersize=4, linewidth=1, label=name)
    for row, x, y in zip(rows, values, heights, strict=True):
        told = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 8, "color": color}
        axes.annotate(row.name, (x, y), **told)
