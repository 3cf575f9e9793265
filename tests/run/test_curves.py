"""The picture of a run's curves: what is drawn, and how."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lsm.errors import TrainingError
from lsm.run.curves import plot_curves


def write_rows(workdir, rows):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def training_rows(count):
    return [{"step": s, "split": "train", "loss": 1 / s, "accuracy": 0.5} for s in range(1, count)]


def drawn_axes(monkeypatch, workdir):
    """Draws the curves; returns the panels of the figure and the size of the picture."""
    from matplotlib.figure import Figure
    from PIL import Image

    figures, savefig = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    path = plot_curves(workdir)
    assert path == workdir / "curves.png"
    with Image.open(path) as picture:
        picture.load()
        return {axes.get_title(): axes for axes in figures[0].axes}, picture.size


def test_curves_of_loss_and_accuracy_over_all_splits(tmp_path, monkeypatch):
    rows = training_rows(20)
    rows += [{"step": s, "split": "validation", "loss": 2.0, "accuracy": 0.4} for s in (10, 19)]
    rows += [{"step": 19, "split": "test", "loss": None, "accuracy": 0.45}]
    write_rows(tmp_path, rows)
    axes, (width, height) = drawn_axes(monkeypatch, tmp_path)
    assert list(axes) == ["loss", "accuracy"]
    assert width > 1.5 * height
    legend = [text.get_text() for text in axes["accuracy"].get_legend().get_texts()]
    assert legend == ["train 50.00 %", "validation 40.00 %", "test 45.00 %"]
    train, validation, test = axes["loss"].get_lines()
    np.testing.assert_allclose(train.get_xdata(), np.arange(1, 20))
    np.testing.assert_allclose(train.get_ydata(), 1 / np.arange(1, 20))
    np.testing.assert_allclose(validation.get_xdata(), [10, 19])
    np.testing.assert_allclose(test.get_ydata(), [np.nan])


def test_a_panel_for_what_evaluations_report_and_none_for_speed(tmp_path, monkeypatch):
    rows = [{"step": 1, "split": "train", "loss": 1.0, "examples_per_sec": 9.0, "lr": 0.1}]
    rows += [{"step": 1, "split": "validation", **{f"figure_{n}": 1.0 for n in range(9)}}]
    write_rows(tmp_path, rows)
    axes, _ = drawn_axes(monkeypatch, tmp_path)
    assert list(axes) == ["loss", *(f"figure {n}" for n in range(5))]


def test_the_row_of_the_goodput_is_not_drawn(tmp_path, monkeypatch):
    rows = [{"step": 1, "split": "train", "loss": 1.0}]
    write_rows(tmp_path, [*rows, {"step": 1, "split": "goodput", "wall_time": 3.0}])
    axes, _ = drawn_axes(monkeypatch, tmp_path)
    assert list(axes) == ["loss"]


def test_a_dense_training_curve_is_smoothed_by_a_centred_mean(tmp_path, monkeypatch):
    rows = [{"step": s, "split": "train", "loss": float(s + s % 2)} for s in range(1, 401)]
    write_rows(tmp_path, rows)
    axes, _ = drawn_axes(monkeypatch, tmp_path)
    raw, smooth = axes["loss"].get_lines()
    assert len(raw.get_xdata()) == 400
    # Means of 10 = 400 // 40 values s + s % 2: on average 0.5 above the middle of their steps,
    # which is half a step after the step they are drawn at.
    np.testing.assert_allclose(smooth.get_ydata(), smooth.get_xdata() + 1.0)


@pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (0.01, "log"), (-1.0, "linear")])
def test_a_logarithmic_scale_only_where_it_helps(tmp_path, monkeypatch, last, scale):
    write_rows(
        tmp_path, [{"step": s, "split": "train", "loss": x} for s, x in [(1, 2.0), (2, last)]]
    )
    axes, _ = drawn_axes(monkeypatch, tmp_path)
    assert axes["loss"].get_yscale() == scale


def test_no_two_ticks_say_the_same(tmp_path, monkeypatch):
    """Neither of one step or of few, nor of accuracies close to 1."""
    for steps in (1, 3):
        accuracies = {s: 0.9999 + 1e-5 * (s == steps) for s in range(1, steps + 1)}
        rows = [{"step": s, "split": "train", "accuracy": x} for s, x in accuracies.items()]
        write_rows(tmp_path, rows)
        axes, _ = drawn_axes(monkeypatch, tmp_path)
        for axis in (axes["accuracy"].xaxis, axes["accuracy"].yaxis):
            low, high = axis.get_view_interval()
            places = [place for place in axis.get_majorticklocs() if low <= place <= high]
            told = axis.get_major_formatter().format_ticks(places)
            assert places and len({*told}) == len(told), told


def test_drawing_leaves_pyplot_alone(tmp_path):
    write_rows(tmp_path, training_rows(3))
    code = "import sys; from lsm.run.curves import plot_curves; plot_curves(sys.argv[1]); "
    code += "print('matplotlib.pyplot' in sys.modules)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


@pytest.mark.parametrize("rows", [None, [], [{"step": 1, "split": "train", "lr": 0.1}]])
def test_no_curves_to_draw_is_one_line(tmp_path, rows):
    if rows is not None:
        write_rows(tmp_path, rows)
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: no row has a loss"):
        plot_curves(tmp_path)
