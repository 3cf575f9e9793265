"""Where a run's time goes, and how much of the device it uses."""

import dataclasses
import json
import time

import jax
import numpy as np
import pytest

import lsm
from lsm import Data, Evaluation, Experiment, Train
from lsm.cost import CHIPS
from lsm.data import Arrays, Digits
from lsm.metrics import Weighted
from lsm.models import GPT, MLP, Transformer
from lsm.optim import Adam
from lsm.tasks import Classification, LanguageModelling
from lsm.train import throughput
from lsm.train.goodput import Clock, Goodput, undone
from lsm.train.progress import Progress
from lsm.train.window import Window
from lsm.writers import Jsonl

KINDS = [field.name for field in dataclasses.fields(Goodput)]


def experiment(**changes):
    fields = {
        "name": "small",
        "task": Classification(model=MLP(widths=(32,))),
        "data": Data(source=Digits(), train="train[:80%]", validation="train[80%:]"),
        "optimizer": Adam(learning_rate=3e-3),
        "train": Train(steps=30, batch_size=64, log_every=10),
        "evaluation": Evaluation(every=10, monitor="accuracy"),
        "checkpoint": lsm.Checkpoint(every=10),
        "writers": (Jsonl(),),
    }
    return Experiment(**fields | changes)


def rows(workdir, split):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


class Ticking:
    """time.monotonic() that only the test moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_a_clock_books_every_second_once(monkeypatch):
    ticking = Ticking(monkeypatch)
    clock = Clock()
    ticking.now += 1  # in no kind: other
    with clock("startup"):
        ticking.now += 5
        with clock("compile"):  # the inner kind wins
            ticking.now += 10
            assert clock.spent == Goodput(other=1, startup=5, compile=10)
            ticking.now += 20
        ticking.now += 2  # the rest is the outer one's
    for _ in range(3):
        with clock("steps"):
            ticking.now += 1
            with clock("input"):
                ticking.now += 4
    assert clock.spent == Goodput(other=1, startup=7, compile=30, steps=3, input=12)
    clock.add(Goodput(steps=4, lost=20))
    assert clock.spent.total == 77 and clock.spent.share == 7 / 77


def test_an_exception_leaves_a_clock_in_order(monkeypatch):
    ticking = Ticking(monkeypatch)
    clock = Clock()
    with pytest.raises(OSError), clock("evaluation"):
        ticking.now += 1
        with clock("compile"):
            ticking.now += 2
            raise OSError
    ticking.now += 4
    assert clock.spent == Goodput(evaluation=1, compile=2, other=4)
    with pytest.raises(KeyError, match="'step' is no field of Goodput"), clock("step"):
        pass


def test_the_speed_is_that_of_steps_alone(monkeypatch):
    """One step that compiles, two of 3 s of which 1 s is waiting, and 2 s until they are done."""
    ticking = Ticking(monkeypatch)
    clock = Clock()
    window, metrics = Window(0, clock), {"loss": Weighted(jax.numpy.ones(()), 1.0)}

    def step(kind):
        with clock(kind):
            ticking.now += 2
            with clock("input"):
                ticking.now += 1
        window.add(metrics, 1)
        ticking.now += 50  # a pause

    step("compile")
    window.time_from_here()
    assert window.read()[1] == {}
    step("steps")
    step("steps")
    ready = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", slowly_ticking(ticking, 2, ready))
    totals, speed, bad = window.read()
    assert speed == {"steps_per_sec": 2 / 8, "input_wait": 2 / 8}
    assert totals["loss"] == Weighted(3.0, 3.0) and bad is None


def slowly_ticking(ticking, seconds, function):
    def slow(*args):
        ticking.now += seconds
        return function(*args)

    return slow


def test_what_a_kill_undid():
    """Rows at 10, 20, 25, 30 and 40; the run goes on from 20."""
    told = [
        {"step": 10, "split": "train", "steps_per_sec": 1.0},
        {"step": 20, "split": "train", "steps_per_sec": 1.0},
        {"step": 25, "split": "train", "steps_per_sec": 10.0},
        {"step": 25, "split": "validation"},
        {"step": 30, "split": "train"},  # no step was timed
        {"step": 40, "split": "train", "steps_per_sec": 5.0},
    ]
    assert undone(told, 20) == (20, 5 / 10 + 10 / 5)
    assert undone(told, 40) == (0, 0.0)
    assert undone([], 0) == (0, 0.0)


def test_progress_survives_json():
    progress = Progress(best=0.5, goodput=Goodput(steps=3.5), replayed=7)
    saved = json.loads(json.dumps(dataclasses.asdict(progress)))
    assert Progress.of(saved) == progress
    assert Progress.of({"best": 0.5, "seconds": 3.0}) == Progress(best=0.5)  # an older one


def test_parts_add_up_to_the_wall_time(tmp_path):
    began = time.monotonic()
    result = lsm.fit(experiment(), tmp_path)
    elapsed = time.monotonic() - began
    account = result.goodput
    assert sum(account[f"{kind}_seconds"] for kind in KINDS) == pytest.approx(result.wall_time)
    assert account["goodput"] == pytest.approx(account["steps_seconds"] / result.wall_time)
    assert 0.5 * elapsed < result.wall_time < elapsed
    for kind in ("steps", "compile", "evaluation", "checkpoint", "startup"):
        assert account[f"{kind}_seconds"] > 0
    assert account["lost_seconds"] == account["replayed_steps"] == 0
    (row,) = rows(tmp_path, "goodput")
    assert {k: row[k] for k in account} == account and row["step"] == 30
    assert json.loads((tmp_path / "result.json").read_text())["goodput"] == account


def slowly(seconds, function):
    return lambda *args: (time.sleep(seconds), function(*args))[1]


@pytest.mark.slow
def test_slow_data_shows(tmp_path, monkeypatch):
    """Of 30 batches 8 may be ready when the step is compiled, and some more when it is logged."""
    take = lsm.data.TrainBatches.batch_at
    monkeypatch.setattr(lsm.data.TrainBatches, "batch_at", slowly(0.15, take))
    data = Data(source=Digits(), train="train", workers=1)
    run = experiment(
        data=data,
        train=Train(steps=30, batch_size=64, log_every=10, steps_per_execution=1),
        evaluation=Evaluation(every=30),
        checkpoint=lsm.Checkpoint(every=0),
    )
    account = lsm.fit(run, tmp_path).goodput
    assert account["input_seconds"] > 15 * 0.15
    assert account["steps_seconds"] < account["input_seconds"]
    assert rows(tmp_path, "train")[-1]["input_wait"] > 0.5


@pytest.mark.slow
def test_slow_saves_show(tmp_path, monkeypatch):
    save = lsm.run.checkpoint.Checkpoints.save
    monkeypatch.setattr(lsm.run.checkpoint.Checkpoints, "save", slowly(0.3, save))
    assert lsm.fit(experiment(), tmp_path).goodput["checkpoint_seconds"] > 3 * 0.3


@pytest.mark.slow
def test_a_killed_run_counts_what_it_makes_again(tmp_path, monkeypatch):
    """Killed after the row of step 20, before its checkpoint: steps 11 to 20 are lost."""
    save = lsm.run.checkpoint.Checkpoints.save

    def kill(self, step, *args):
        if step == 20:
            raise KeyboardInterrupt
        save(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(lsm.run.checkpoint.Checkpoints, "save", kill)
        with pytest.raises(KeyboardInterrupt):
            lsm.fit(experiment(), tmp_path)
    speed = rows(tmp_path, "train")[-1]["steps_per_sec"]
    result = lsm.fit(experiment(), tmp_path)
    account = result.goodput
    assert account["replayed_steps"] == 10
    assert account["lost_seconds"] == pytest.approx(10 / speed)
    assert account["restore_seconds"] > 0
    assert sum(account[f"{kind}_seconds"] for kind in KINDS) == pytest.approx(result.wall_time)
    again = lsm.fit(experiment(), tmp_path).goodput  # done already: nothing more is lost
    assert again["replayed_steps"] == 10


def test_mfu_by_hand(tmp_path, monkeypatch):
    """64 pictures of 8 x 8 through 64 -> 32 -> 10 take 2 x 64 x (2 x 64 x 32 + 3 x 32 x 10)."""
    fake = dataclasses.replace(CHIPS[0], kinds=("cpu",), flops=1e9)
    monkeypatch.setattr(throughput, "chip_of", lambda kind: fake)
    result = lsm.fit(experiment(), tmp_path)
    row = rows(tmp_path, "train")[-1]
    flops = 2 * 64 * (2 * 64 * 32 + 3 * 32 * 10) * row["steps_per_sec"] / jax.device_count()
    assert row["tflops_per_sec_per_device"] == pytest.approx(flops / 1e12)
    assert row["mfu"] == pytest.approx(flops / 1e9)
    account = result.goodput
    mean = 30 / (account["steps_seconds"] + account["input_seconds"])
    assert account["steps_per_sec"] == pytest.approx(mean)
    assert account["mfu"] == pytest.approx(row["mfu"] * mean / row["steps_per_sec"])


def test_no_mfu_where_the_peak_is_not_known(tmp_path):
    result = lsm.fit(experiment(train=Train(steps=4, batch_size=64, log_every=2)), tmp_path)
    assert "mfu" not in result.goodput and "mfu" not in rows(tmp_path, "train")[-1]
    assert result.goodput["tflops_per_sec_per_device"] > 0


@pytest.mark.slow
def test_a_run_that_goes_on_adds_up(tmp_path):
    first = lsm.fit(experiment(train=Train(steps=20, batch_size=64)), tmp_path).goodput
    more = experiment(train=Train(steps=30, batch_size=64))
    second = lsm.fit(more, tmp_path, allow_config_change=True).goodput
    assert second["replayed_steps"] == 0
    for kind in ("steps", "compile", "startup"):
        assert second[f"{kind}_seconds"] > first[f"{kind}_seconds"]


@pytest.mark.slow
def test_a_language_model_counts_tokens(tmp_path):
    tokens = np.zeros((64, 9), np.int32)
    run = experiment(
        task=LanguageModelling(
            model=GPT(vocabulary=5, context=8, transformer=Transformer(layers=1, heads=1, width=8))
        ),
        data=Data(source=Arrays(train={"tokens": tokens}), train="train", test="train"),
        train=Train(steps=4, batch_size=8, log_every=2),
        evaluation=Evaluation(every=10, monitor="loss"),
    )
    lsm.fit(run, tmp_path)
    row = rows(tmp_path, "train")[-1]
    assert row["tokens_per_sec"] == pytest.approx(8 * row["examples_per_sec"])
