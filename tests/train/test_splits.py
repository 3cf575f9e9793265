"""Splits that are evaluated beside the one that is trained on: dtypes, shapes, and weights."""

import numpy as np
import pytest

from lsm import Data, Experiment, Train
from lsm.data import Arrays, Files
from lsm.errors import DataError
from lsm.models import MLP
from lsm.optim import SGD
from lsm.tasks import Classification, Regression
from lsm.train.trainer import Trainer

N = 8
LABELS = np.arange(N) % 2
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
TASK = Classification(model=MLP(widths=(), outputs=2), input="x")


def opened(source, task=TASK, validation="validation", test=None):
    experiment = Experiment(
        name="splits",
        task=task,
        data=Data(source=source, validation=validation, test=test),
        optimizer=SGD(learning_rate=0.1),
        train=Train(steps=1, batch_size=N),
    )
    return Trainer.of(experiment, None)


def test_whole_numbers_of_one_file_are_the_fractions_of_another(tmp_path):
    rows = {"train": X.tolist(), "test": [[1, 2, 3]] * N}
    for split, values in rows.items():
        lines = [f'{{"x": {x}, "label": {y}}}\n' for x, y in zip(values, LABELS, strict=True)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    source = Files(str(tmp_path))
    batches = opened(source, validation=None, test="test").evaluation["test"]
    assert source.open("test").take(np.arange(1))["x"].dtype == np.int32
    found = batches.batch_at(0)["x"]
    assert found.dtype == batches.dataset.spec["x"].dtype == np.float32
    np.testing.assert_array_equal(found, rows["test"])
    assert [part["x"].dtype for part in batches.dataset.held()] in ([], [np.float32])
    both = source.open("test+train").take(np.arange(2 * N))["x"]
    np.testing.assert_allclose(both, np.float32(rows["test"] + rows["train"]))


@pytest.mark.parametrize(
    ("train", "validation", "line"),
    [
        ("pixels", "floats", r"data\.validation: column 'x' is float32, and uint8 in training"),
        ("floats", "pixels", "column 'x' is uint8 in one split and float32 in another; one kind"),
        ("floats", "wide", r"data\.validation: column 'x' is \(4,\), and \(3,\) in training, and"),
        ("negative", "floats", "column 'weight' weighs the examples, and one is below 0"),
    ],
)
def test_what_does_not_go_together_is_told_before_the_first_step(train, validation, line):
    columns = {
        "floats": {"x": X},
        "pixels": {"x": (X * 50 + 100).astype(np.uint8)},
        "wide": {"x": np.pad(X, ((0, 0), (0, 1)))},
        "negative": {"x": X, "weight": -np.ones(N, np.float32)},
    }
    train, validation = (columns[name] | {"label": LABELS} for name in (train, validation))
    with pytest.raises(DataError, match=line):
        opened(Arrays(train, validation))


def test_a_weight_below_0_is_found_wherever_it_is():
    weights = np.ones(4 * N, np.float32)  # of which a batch has a quarter
    columns = {"x": np.tile(X, (4, 1)), "label": np.tile(LABELS, 4), "weight": weights}
    worse = columns | {"weight": np.where(np.arange(4 * N) == 4 * N - 1, -1, weights)}
    for train, test in ((worse, columns), (columns, worse)):
        with pytest.raises(DataError, match="column 'weight' weighs the examples, and one is belo"):
            trainer = opened(Arrays(train, test=test), validation=None, test="test")
            for split in ("train", "test"):
                trainer.check_examples(split)


def test_the_weights_of_examples_are_no_target():
    task = Regression(model=MLP(widths=(), outputs=1), target="weight")
    columns = {"x": X, "weight": np.ones(N, np.float32)}
    with pytest.raises(DataError, match=r"task\.target: column 'weight' weighs the examples"):
        opened(Arrays(columns, columns), task)
