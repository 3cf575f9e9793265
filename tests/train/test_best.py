"""Which step is the best of a run that goes on with something else."""

import dataclasses
import json

import numpy as np
import pytest

import lsm
from lsm import Checkpoint, Data, Evaluation, Experiment, Train
from lsm.data import Arrays
from lsm.errors import ConfigError
from lsm.models import MLP
from lsm.optim import SGD
from lsm.tasks import Classification
from lsm.writers import Jsonl

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(64, 4)).astype(np.float32)
LABELS = (IMAGES[:, 0] > 0).astype(np.int32)


def experiment(steps=4, right=True, test=True, **changes):
    """A run that learns the labels; `right` and `test` say whether those of the splits are its."""
    known = {"image": IMAGES, "label": LABELS}
    splits = {
        name: known | {"label": LABELS if same else 1 - LABELS}
        for name, same in (("validation", right), ("test", test))
    }
    fields = {
        "name": "best",
        "task": Classification(model=MLP(outputs=2)),
        "data": Data(source=Arrays(train=known, **splits), validation="validation", test="test"),
        "optimizer": SGD(learning_rate=0.5),
        "train": Train(steps=steps, batch_size=64, log_every=2),
        "evaluation": Evaluation(every=2, monitor="loss"),
        "checkpoint": Checkpoint(every=2, keep=9),
        "writers": (Jsonl(),),
    }
    return Experiment(**fields | changes)


@pytest.fixture
def begun(tmp_path):
    """The workdir of a run of four steps, whose last is the best."""
    assert lsm.fit(experiment(), tmp_path).best_step == 4
    return tmp_path


@pytest.mark.parametrize(
    "otherwise",
    [
        {"right": False},  # the loss rises on these labels: what is best comes first
        {"task": Classification(model=MLP(outputs=2), label_smoothing=0.5), "right": False},
        {"evaluation": Evaluation(every=2, monitor="loss", better="higher")},
    ],
    ids=["data", "task", "order"],
)
def test_what_is_best_is_chosen_anew_where_it_was_judged_otherwise(begun, otherwise):
    result = lsm.fit(experiment(8, **otherwise), begun, allow_config_change=True)
    assert result.best_step == 6
    assert lsm.load(begun, experiment=experiment(8, **otherwise)).step == 6


def test_fields_that_alter_nothing_leave_what_is_best(begun):
    """Those of the optimiser, of the loop, and data that nothing is chosen by."""
    other = experiment(8, test=False, optimizer=SGD(learning_rate=1e-30))  # no step is better
    assert lsm.fit(other, begun, allow_config_change=True).best_step == 4


def test_a_run_without_a_step_left_to_choose_from_is_refused(begun):
    before = (begun / "config.json").read_text(), (begun / "result.json").read_text()
    with pytest.raises(ConfigError, match="none of its 4 steps is left to choose from; ask for mo"):
        lsm.fit(experiment(right=False), begun, allow_config_change=True)
    assert ((begun / "config.json").read_text(), (begun / "result.json").read_text()) == before


def test_other_test_data_of_a_run_that_is_done_replaces_its_row(begun):
    result = lsm.fit(experiment(test=False), begun, allow_config_change=True)
    lines = [json.loads(line) for line in (begun / "metrics.jsonl").read_text().splitlines()]
    (row,) = [line for line in lines if line["split"] == "test"]
    assert row["accuracy"] == pytest.approx(result.metrics["test"]["accuracy"])
    assert row["accuracy"] < 0.5


def test_a_run_that_an_earlier_version_has_judged_goes_on(begun):
    """It told how the judgement begins: the metric, the split and the order."""
    progress = lsm.train.progress.Progress(
        judged="loss of validation, lower", best=0.1, best_step=2
    )
    now = progress.asked((8, None), "loss of validation, lower; 0123456789abcdef")
    assert (now.best_step, now.judged) == (2, "loss of validation, lower; 0123456789abcdef")
    assert (
        dataclasses.replace(progress, judged="accuracy").asked((8, None), now.judged).best is None
    )
