"""The linear regressions that the source works by hand, as runs: their rows show the true figures."""

import dataclasses
import pathlib

import numpy as np
import pytest

import lsm
from lsm.config import flags
from lsm.errors import TrainingError
from lsm.writers import Jsonl, read_metrics

CONFIG = pathlib.Path(__file__).parents[2] / "experiments/configs/linear/descent.py"


def run(form, workdir, **changes):
    experiment = dataclasses.replace(flags.load(f"{CONFIG}:{form}", changes), writers=(Jsonl(),))
    return lsm.fit(experiment, workdir)


def curve(workdir, split, name):
    return [row[name] for row in read_metrics(workdir) if row["split"] == split and name in row]


def test_slope_steps_as_the_fractions_say(tmp_path):
    run("slope", tmp_path)
    after = curve(tmp_path, "test", "theta_1")
    assert after == pytest.approx([4 / 3, 64 / 45, 964 / 675], abs=1e-6)
    assert curve(tmp_path, "train", "loss")[0] == pytest.approx(29 / 3)
    assert set(curve(tmp_path, "test", "theta_0")) == {0.0}, "it has no intercept"


@pytest.mark.slow
def test_slope_best_is_the_optimum_in_one_step(tmp_path):
    result = run("slope_best", tmp_path)
    assert result.step == 1
    assert result.metrics["test"]["theta_1"] == pytest.approx(20 / 14)


@pytest.mark.slow
def test_line_starts_at_44_and_diverges_at_the_rate_of_the_source(tmp_path):
    result = run("line", tmp_path)
    assert curve(tmp_path, "train", "loss")[0] == pytest.approx(44)
    first = [curve(tmp_path, "test", f"theta_{i}")[0] for i in (0, 1)]
    assert first == pytest.approx([1.2, 4.4])
    losses = curve(tmp_path, "test", "loss")
    assert losses == sorted(losses) and losses[-1] > 1e28
    predicted = lsm.load(tmp_path).predict({"x": np.ones((1, 1))})["prediction"]
    thetas = result.metrics["test"]
    assert predicted[0] == pytest.approx(thetas["theta_0"] + thetas["theta_1"], rel=1e-5)
    with pytest.raises(TrainingError, match=r"^step 135: the loss is not finite; .*rate is 0\.1;"):
        run("line", tmp_path / "longer", **{"train.steps": "200"})


@pytest.mark.slow
def test_line_best_converges_to_0_and_2(tmp_path):
    result = run("line_best", tmp_path)
    figures = result.metrics["test"]
    assert (figures["theta_0"], figures["theta_1"]) == pytest.approx((0, 2), abs=1e-4)
    assert figures["loss"] == pytest.approx(figures["mean_squared_error"]) and figures[
        "r2"
    ] == pytest.approx(1)
