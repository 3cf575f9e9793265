"""R2 against scikit-learn; and that no split into batches changes it."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from lsm import evaluate
from lsm.errors import DataError
from lsm.evaluate import R2

pytestmark = pytest.mark.filterwarnings("error")


def data(shape, offset=0.0, weights=True):
    rng = np.random.default_rng(0)
    targets = (rng.normal(size=shape) + offset).astype(np.float32)
    batch = {"y": targets}
    if weights:
        batch["weight"] = rng.choice([0, 0.5, 1, 3], shape[0]).astype(np.float32)
    return {"prediction": (targets + 0.3 * rng.normal(size=shape)).astype(np.float32)}, batch


def figures(predictions, batch, cuts=()):
    accumulators = evaluate.init((R2(),))
    for rows in np.split(np.arange(len(batch["y"])), cuts):
        part = [{name: x[rows] for name, x in group.items()} for group in (predictions, batch)]
        accumulators = evaluate.update((R2(),), accumulators, *part)
    return evaluate.compute((R2(),), accumulators)


@pytest.mark.parametrize("cuts", [(), (1, 1, 7, 30)], ids=["whole", "in pieces"])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("shape", [(60,), (60, 1), (60, 3)], ids=str)
def test_r2_is_scikit_learns(shape, weights, offset, cuts):
    predictions, batch = data(shape, offset, weights)
    pair = batch["y"].astype(float), predictions["prediction"].astype(float)
    weight = batch.get("weight")
    expected = {
        "r2": sk.r2_score(*pair, sample_weight=weight),
        "mean_squared_error": sk.mean_squared_error(*pair, sample_weight=weight),
    }
    assert figures(predictions, batch, cuts) == pytest.approx(expected, rel=1e-9)


def test_one_output_and_no_axis_are_the_same():
    predictions, batch = data((60, 1))
    flat = figures(predictions, batch | {"y": batch["y"][:, 0]})
    assert flat == figures(predictions, batch)


def test_what_is_not_defined_is_nan():
    predictions, batch = data((60,))
    nothing = figures(predictions, batch | {"weight": np.zeros(60)})
    assert all(math.isnan(x) for x in nothing.values())
    same = figures(predictions, batch | {"y": np.ones(60)})
    assert math.isnan(same["r2"]) and same["mean_squared_error"] > 0


def test_predictions_of_another_size_are_one_line():
    predictions, batch = data((60, 3), weights=False)
    with pytest.raises(DataError, match=r"^R2\.target: \(60,\) given for predictions \(60, 3\)\."):
        figures(predictions, batch | {"y": batch["y"][:, 0]})
