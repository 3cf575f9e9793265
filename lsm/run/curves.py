"""A picture of a run's curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsm.errors import TrainingError
from lsm.evaluate.drawing import figure_of, png
from lsm.files import atomic_write
from lsm.writers import read_metrics

_SPLITS = ("train", "validation", "test")
_COLORS = {"train": "#4477aa", "validation": "#cc6633", "test": "#228833"}
_MOST_PANELS = 6


def plot_curves(workdir: Path) -> Path:
    """Draws `workdir/metrics.jsonl` into `workdir/curves.png` and returns its path.

    One panel for the loss and for each figure that an evaluation reports, six at most, against
    steps; the scale of a figure that stays positive and spans a factor of 50 is logarithmic.

    Raises:
      TrainingError: there are no rows, or the picture cannot be written.
    """
    workdir = Path(workdir)
    rows = read_metrics(workdir)
    names = _panels(rows)
    if not names:
        raise TrainingError(f"{workdir / 'metrics.jsonl'}: no row has a loss or an evaluation.")
    # Four make a square, 2 x 2.
    columns = min(len(names), 3 if len(names) != 4 else 2)
    lines = math.ceil(len(names) / columns)
    figure = figure_of(5.2 * columns, 3.9 * lines, "constrained")
    figure.suptitle(workdir.resolve().name, fontsize=12, fontweight="bold")
    for place, name in enumerate(names, start=1):
        _draw_panel(figure.add_subplot(lines, columns, place), name, rows)
    atomic_write(workdir / "curves.png", png(figure))
    return workdir / "curves.png"


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns loss, accuracy, then what evaluations report of all classes, where a row has it."""
    evaluated = [k for row in rows if row["split"] in _SPLITS[1:] for k in row]
    trained = {k for row in rows if row["split"] == "train" for k in row}
    known = [k for k in ("loss", "accuracy") if k in evaluated or k in trained]
    names = dict.fromkeys(
        known + [k for k in evaluated if k not in ("step", "split") and "/" not in k]
    )
    return list(names)[:_MOST_PANELS]


def _draw_panel(axes, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib import ticker

    is_share = name.endswith("accuracy")
    # Of all splits: they share the scale.
    everything = [
        row[name] for row in rows if row["split"] in _SPLITS and row.get(name) is not None
    ]
    for split in _SPLITS:
        points = [(row["step"], row[name]) for row in rows if row["split"] == split and name in row]
        if points:
            steps, values = np.array(points, dtype=float).T
            last = f"{100 * values[-1]:.2f} %" if is_share else f"{values[-1]:.4g}"
            _draw_split(axes, split, steps, values, f"{split} {last}")
    if is_share:
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, symbol=" %"))
    elif everything and min(everything) > 0 and max(everything) > 50 * min(everything):
        axes.set_yscale("log")
    whole = ticker.MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    axes.xaxis.set_major_locator(whole)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title(name.replace("_", " "), fontsize=11)
    axes.set_xlabel("step")
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _draw_split(axes, split: str, steps: np.ndarray, values: np.ndarray, label: str) -> None:
    """Draws training as a line, smoothed where it is dense, and evaluations with markers."""
    style = {"color": _COLORS[split], "linewidth": 1.6, "label": label}
    if split != "train":
        style |= {"marker": "o", "markersize": 3.5}
    if len(steps) == 1:
        style |= {"marker": "*", "markersize": 11, "linestyle": "none"}
    if split == "train" and len(steps) > 100:
        axes.plot(steps, values, color=_COLORS[split], alpha=0.35, linewidth=0.8)
        window = len(steps) // 40
        values = np.convolve(values, np.ones(window) / window, mode="valid")
        # A mean belongs to the middle of its window.
        steps = steps[(window - 1) // 2 :][: len(values)]
    axes.plot(steps, values, **style)
