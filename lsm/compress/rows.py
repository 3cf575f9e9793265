"""The rows of a chain: what each link came to, and what it has cost against the first."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from lsm.compress.measure import Latency, Size
from lsm.compress.recipe import Link, Recipe
from lsm.config import Evaluation


@dataclasses.dataclass(frozen=True)
class Row:
    """What a link came to; the first row is of what the chain began with.

    Attributes:
      name: number and kind of the link.
      workdir: of the run that it has made.
      value: its metric, over all of the split.
      size: of its model.
      latency: by examples of a batch, all rows measured at the same time.
      ratios: of the median to the first row's, by examples, when the link was done.
      seconds: that the link took, without what measures it; None of the first row.
    """

    name: str
    workdir: str
    value: float
    size: Size
    latency: dict[int, Latency]
    ratios: dict[int, float]
    seconds: float | None = None

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Row":
        """Undoes `dataclasses.asdict` and JSON; raises KeyError, TypeError or ValueError."""
        latency = {int(rows): Latency(**of) for rows, of in saved["latency"].items()}
        ratios = {int(rows): float(of) for rows, of in saved["ratios"].items()}
        size = Size(**saved["size"])
        return cls(**{**saved, "size": size, "latency": latency, "ratios": ratios})


def lost(recipe: Recipe, first: Row, row: Row) -> float:
    """Returns how many hundredths of the metric a row is worse than the first."""
    return 100 * _sign(recipe) * (first.value - row.value)


def missed(recipe: Recipe, link: Link, first: Row, row: Row) -> Iterator[str]:
    """Yields what a row is worse in than its link or the recipe allows."""
    costs = [
        (f"{recipe.metric} lost, in points", lost(recipe, first, row), link.loses_at_most),
        ("share of the bytes", row.size.bytes / first.size.bytes, link.size_at_most),
    ]
    costs += [
        (f"share of the time for a batch of {rows}", ratio, link.latency_at_most)
        for rows, ratio in row.ratios.items()
    ]
    for what, value, bound in costs:
        if bound is not None and not value <= bound:  # nor is NaN below
            yield f"{what}: {value:.3f}, allowed: {bound} at the most"
    sign, floor = _sign(recipe), recipe.floor
    if floor is not None and not sign * row.value >= sign * floor:
        yield f"{recipe.metric} {row.value:.4f}, and the floor is {floor}"


def _sign(recipe: Recipe) -> int:
    """-1 where a lower value of the metric is better, else 1."""
    return Evaluation(monitor=recipe.metric, better=recipe.better).sign
