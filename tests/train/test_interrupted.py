"""A signal while a run evaluates: it leaves at once, and makes the evaluation when it goes on."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

import lsm
from lsm import Checkpoint, Data, EarlyStopping, Evaluation, Experiment, Train
from lsm.data import Arrays
from lsm.evaluate import Metric
from lsm.models import MLP
from lsm.optim import SGD
from lsm.tasks import Classification
from lsm.writers import Jsonl

SIGNALS = []
"""Batches to come, counted through all evaluations, in the last of which a signal arrives."""


@dataclasses.dataclass(frozen=True)
class Counted(Metric):
    """Counts examples, and sends this process a signal in one of the batches."""

    columns = ()

    def init(self):
        return 0

    def update(self, accumulator, predictions, batch):
        trains = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # the loop takes it
        if trains and SIGNALS and not SIGNALS.pop() and not SIGNALS:
            os.kill(os.getpid(), signal.SIGTERM)
        return accumulator + len(predictions["label"])

    def compute(self, accumulator):
        return {"examples": accumulator}


def experiment(**changes):
    random = np.random.default_rng(0)
    images = random.normal(size=(96, 4)).astype(np.float32)
    columns = {"image": images, "label": (images[:, 0] > 0).astype(np.int32)}
    fields = {
        "name": "interrupted",
        "task": Classification(model=MLP(outputs=2)),
        "data": Data(source=Arrays(train=columns, test=columns), validation="test", test=None),
        "optimizer": SGD(learning_rate=0.1),
        "train": Train(steps=6, batch_size=16, log_every=1),
        # Twelve batches of 8: more than are in flight.
        "evaluation": Evaluation(every=2, batch_size=8, monitor="loss", metrics=(Counted(),)),
        "checkpoint": Checkpoint(every=0),
        "writers": (Jsonl(),),
    }
    return Experiment(**fields | changes)


def rows(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    timed = ("per_sec", "seconds", "mfu", "flops", "input_wait")
    return [
        {name: x for name, x in row.items() if not any(word in name for word in timed)}
        for row in lines
        if row["split"] != "goodput"
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    return lsm.fit(experiment(), workdir), rows(workdir)


@pytest.mark.parametrize("batch", [1, 14, 26], ids=["first", "second", "last"])
def test_an_evaluation_is_left_and_made_when_the_run_goes_on(straight, batch, tmp_path):
    """Twelve batches an evaluation, after steps 2, 4 and 6."""
    SIGNALS.extend([0] * batch)
    result = lsm.fit(experiment(), tmp_path)
    step = 2 * (1 + batch // 12)
    assert (result.stopped, result.step) == ("interrupted", step)
    assert rows(tmp_path)[-1]["split"] == "train"  # of the evaluation there is nothing
    again = lsm.fit(experiment(), tmp_path)
    whole, told = straight
    assert rows(tmp_path) == told
    assert (again.fingerprint, again.best_step) == (whole.fingerprint, whole.best_step)
    assert again.metrics == whole.metrics and again.stopped == "completed"


@pytest.mark.slow
def test_one_that_is_left_twice_counts_once(tmp_path):
    stopping = EarlyStopping(patience=2)
    case = experiment(
        optimizer=SGD(learning_rate=30.0),  # the loss is worse from the second evaluation on
        train=Train(steps=40, batch_size=16, log_every=1),
        evaluation=dataclasses.replace(experiment().evaluation, early_stopping=stopping),
    )
    whole = lsm.fit(case, tmp_path / "whole")
    assert whole.stopped == "early stopping"
    for batch in (14, 1):
        SIGNALS.extend([0] * batch)
        assert lsm.fit(case, tmp_path / "left").stopped == "interrupted"
    again = lsm.fit(case, tmp_path / "left")
    assert (again.stopped, again.step) == (whole.stopped, whole.step)
    assert (again.fingerprint, again.best_step) == (whole.fingerprint, whole.best_step)
    assert rows(tmp_path / "left") == rows(tmp_path / "whole")
