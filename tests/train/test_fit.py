"""Whole runs, in this process: what is written, when they stop, what they refuse."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import lsm
from lsm import Data, EarlyStopping, Evaluation, Experiment, Mesh, Train
from lsm.cli import _closing_line
from lsm.config import schema
from lsm.config.origin import Origin
from lsm.data import (
    ArrayDataset,
    Arrays,
    CenterCrop,
    Digits,
    Poisson,
    Source,
    TrainBatches,
    Transform,
)
from lsm.errors import CheckpointError, ConfigError, DataError, MeshError, TrainingError
from lsm.mesh import Fsdp, Rule, make_mesh, shard
from lsm.models import CNN, MLP
from lsm.optim import SGD, Adam
from lsm.run.checkpoint import Checkpoints
from lsm.run.result import Result, fingerprint
from lsm.run.saved import checksums
from lsm.tasks import Classification
from lsm.train.profile import Profile
from lsm.train.progress import Progress
from lsm.train.trainer import Trainer
from lsm.writers import Jsonl


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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, lsm.fit(experiment(), workdir)


def test_what_a_run_leaves(finished):
    workdir, result = finished
    names = {path.name for path in workdir.iterdir()}
    records = {"config.json", "origin.json", "data.json", "inputs.json", "result.json"}
    assert names == records | {".lock", "metrics.jsonl", "curves.png", "checkpoints"}
    saved = json.loads((workdir / "result.json").read_text())
    assert saved["fingerprint"] == result.fingerprint and saved["step"] == 30
    assert saved["stopped"] == "completed" and saved["seed"] == 0
    assert set(saved["metrics"]) == {"validation", "test"}
    assert {"python", "jax", "flax", "lsm"} <= set(saved["versions"])
    assert saved["hardware"]["platform"] == "cpu"


def test_rows_of_metrics(finished):
    workdir, result = finished
    assert [row["step"] for row in rows(workdir, "train")] == [10, 20, 30]
    assert [row["step"] for row in rows(workdir, "validation")] == [10, 20, 30]
    assert [row["step"] for row in rows(workdir, "test")] == [30]
    row = rows(workdir, "train")[-1]
    assert {"loss", "accuracy", "examples_per_sec", "steps_per_sec", "input_wait"} <= set(row)
    assert row["examples_per_sec"] == pytest.approx(64 * row["steps_per_sec"])
    assert 0 <= row["input_wait"] <= 1 and row["learning_rate"] == pytest.approx(3e-3)
    assert rows(workdir, "test")[0]["accuracy"] == result.metrics["test"]["accuracy"]


def test_evaluation_counts_every_example_once(finished):
    _, result = finished  # 360 test examples in batches of 64: the last one is padded
    assert (result.metrics["test"]["accuracy"] * 360) % 1 == pytest.approx(0, abs=1e-6)


def test_evaluate_run_repeats_the_best_figures(finished):
    workdir, result = finished
    step, figures = lsm.evaluate_run(experiment(), workdir)
    best = next(row for row in rows(workdir, "validation") if row["step"] == result.best_step)
    assert step == result.best_step
    assert figures["validation"]["accuracy"] == best["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [Mesh(fsdp=8, data=1), Mesh(data=4, fsdp=2)], ids=str)
def test_a_run_on_another_mesh_agrees_and_continues(finished, mesh, tmp_path):
    _, reference = finished
    mesh = dataclasses.replace(mesh, rules=(Rule(".*", Fsdp(min_size=1)),))
    half = experiment(train=Train(steps=20, batch_size=64, log_every=10))
    lsm.fit(half, tmp_path)  # on eight data-parallel devices
    with pytest.raises(ConfigError, match=r"train.steps: 20 -> 30"):
        lsm.fit(experiment(mesh=mesh), tmp_path)
    result = lsm.fit(experiment(mesh=mesh), tmp_path, allow_config_change=True)
    for name, value in reference.metrics["test"].items():
        assert result.metrics["test"][name] == pytest.approx(value, abs=3e-3)


def test_early_stopping_restores_the_best(tmp_path):
    # A learning rate that soon goes nowhere: the validation metric gets worse and worse.
    stopping = EarlyStopping(patience=2, min_delta=0.001)
    config = experiment(
        optimizer=Adam(learning_rate=1.0),
        train=Train(steps=400, batch_size=64),
        evaluation=Evaluation(every=5, monitor="loss", early_stopping=stopping),
    )
    result = lsm.fit(config, tmp_path)
    values = [(row["loss"], row["step"]) for row in rows(tmp_path, "validation")]
    best, best_step = min(values)
    assert result.stopped == "early stopping"
    assert result.step == result.best_step == best_step
    assert values[-1][1] == best_step + 2 * 5
    assert result.metrics["validation"]["loss"] == pytest.approx(best)
    assert lsm.fit(config, tmp_path) == result
    # Asked for more, it goes on, and still has what was the best before.
    longer = dataclasses.replace(config, train=Train(steps=500, batch_size=64))
    last = rows(tmp_path, "train")[-1]["step"]
    further = lsm.fit(longer, tmp_path, allow_config_change=True)
    assert rows(tmp_path, "train")[-1]["step"] > last
    assert further.stopped == "early stopping" and further.step == further.best_step
    # Where the best is gone, the run still ends: with the last that there is.
    shutil.rmtree(tmp_path / f"checkpoints/{further.best_step}")
    (tmp_path / "result.json").unlink()
    without = lsm.fit(longer, tmp_path)
    assert without.step > further.step and without.best_step is None
    assert (tmp_path / "result.json").exists()


def test_a_run_of_another_config_begins_with_no_rows_of_the_one_before(tmp_path):
    lsm.fit(experiment(), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "wandb_run_id").write_text("before")
    result = lsm.fit(experiment(train=Train(steps=10, batch_size=64, log_every=10)), tmp_path)
    assert result.goodput["replayed_steps"] == 0 and len(rows(tmp_path, "train")) == 1
    assert not (tmp_path / "wandb_run_id").exists()


def test_a_change_that_cannot_be_made_leaves_the_run_as_it_was(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    wider = experiment(task=Classification(model=MLP(widths=(48,))))
    with pytest.raises(CheckpointError, match="is of another model"):
        lsm.fit(wider, tmp_path / "run", allow_config_change=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")} == before
    assert lsm.fit(experiment(), tmp_path / "run") == finished[1]


@pytest.mark.parametrize(
    ("before", "now", "goes_on"),
    [
        ((400, 2), (400, 2), False),
        ((400, 2), (500, 2), True),
        ((400, 2), (400, 3), True),
        ((400, 2), (400, None), True),
        ((400, 2), (400, 1), False),
        ((400, 2), (300, 2), False),
        (None, (400, 2), False),  # of an earlier version, which did not say
    ],
)
def test_what_an_early_stop_holds_for(before, now, goes_on):
    saved = json.loads(
        json.dumps(dataclasses.asdict(Progress(stale=2, stopped=True, within=before)))
    )
    progress = Progress.of(saved).asked(now, "loss, lower")
    assert (progress.stopped, progress.stale) == ((False, 0) if goes_on else (True, 2))
    running = Progress(stale=1, within=before).asked(now, "loss, lower")
    assert (running.stopped, running.stale, running.within) == (False, 1, now)


def test_what_is_best_by_one_figure_is_not_compared_with_another():
    before = Progress(judged="loss, lower", best=2.3, best_step=5, stale=2, stopped=True)
    now = before.asked((400, 2), "accuracy, higher")
    assert (now.best, now.best_step, now.stale, now.stopped) == (None, None, 0, False)
    assert before.asked((400, 2), "loss, lower").best_step == 5


@pytest.mark.parametrize(
    ("values", "stale", "best_step", "stopped"),
    [
        ([3, 2, 1], 0, 3, False),
        ([1, 2, 3], 2, 1, True),
        ([2, 1.95, 1.85], 0, 3, False),
        ([1, 1], 1, 1, False),
        ([np.nan, 5], 0, 2, False),
        ([1, np.nan], 1, 1, False),
        ([np.inf, 5], 0, 2, False),
        ([np.nan, np.nan], 2, None, True),  # no evaluation was good: none is the best
    ],
)  # fmt: skip
def test_patience_and_min_delta(values, stale, best_step, stopped):
    config = Evaluation(monitor="loss", early_stopping=EarlyStopping(patience=2, min_delta=0.1))
    progress = Progress()
    for step, value in enumerate(values, 1):
        progress = progress.after(step, value, config)
    assert (progress.stale, progress.best_step, progress.stopped) == (stale, best_step, stopped)


def files(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_as_it_is(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    before = files(workdir)
    assert lsm.fit(experiment(name="other", writers=()), workdir) == finished[1]
    assert files(workdir) == before


def test_what_is_missing_of_a_finished_run_is_made_again(finished, tmp_path):
    """As after a kill between the curves and the result, or by a disk that cut it."""
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / "result.json").write_text("{")
    (workdir / "curves.png").unlink(missing_ok=True)
    assert lsm.fit(experiment(), workdir).metrics == finished[1].metrics
    assert Result.load(workdir).step == 30 and (workdir / "curves.png").exists()


def test_an_interrupted_extension_has_no_result(finished, tmp_path, monkeypatch, caplog):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    longer = experiment(train=Train(steps=40, batch_size=64, log_every=10))
    monkeypatch.setattr("lsm.train.interrupt.Interrupt.stops_after", lambda self, step: True)
    assert lsm.fit(longer, workdir, allow_config_change=True).stopped == "interrupted"
    assert not (workdir / "result.json").exists()
    monkeypatch.undo()
    with caplog.at_level("INFO"):
        assert lsm.fit(longer, workdir).step == 40 and (workdir / "result.json").exists()
    assert "goes on from step 31 of 40" in caplog.messages


def test_a_result_without_its_checkpoints_is_made_anew(finished, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    for step in (workdir / "checkpoints").glob("[0-9]*"):
        shutil.rmtree(step)
    monkeypatch.setattr("lsm.train.interrupt.Interrupt.stops_after", lambda self, step: True)
    assert lsm.fit(experiment(), workdir).stopped == "interrupted"
    assert not (workdir / "result.json").exists()


def test_a_finished_run_of_another_config_is_measured_again(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    config = experiment(data=Data(source=Digits(), train="train[:80%]", test=None))
    again = lsm.fit(config, workdir, allow_config_change=True)
    assert again.fingerprint == finished[1].fingerprint and "test" not in again.metrics


def test_the_test_split_is_evaluated_where_there_is_one(tmp_path):
    source = arrays().source
    config = experiment(data=Data(source), task=Classification(model=MLP(outputs=2)))
    result = lsm.fit(config, tmp_path)
    assert result.metrics == {}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["data"]["test"] is None  # what was done, also for whoever reads it later
    assert lsm.fit(config, tmp_path).fingerprint == result.fingerprint
    asked = dataclasses.replace(config, data=Data(source, test="test"))
    with pytest.raises(DataError, match="has no split 'test'; it has train"):
        lsm.fit(asked, tmp_path / "asked")


def test_a_column_that_no_device_holds_is_named(tmp_path):
    data = arrays()
    columns = {**data.source.train, "name": np.array(["a"] * 256, object)}
    config = experiment(data=Data(Arrays(columns)), task=Classification(model=MLP(outputs=2)))
    with pytest.raises(
        DataError, match="'name' is text: example 0 holds 'a'; .* data.source.columns"
    ):
        lsm.fit(config, tmp_path)


def test_evaluation_uses_the_moving_average(tmp_path):
    config = experiment(optimizer=Adam(learning_rate=3e-3, ema=0.9))
    result = lsm.fit(config, tmp_path)
    plain = lsm.fit(experiment(), tmp_path / "plain")
    assert result.fingerprint == plain.fingerprint  # the same parameters,
    assert result.metrics != plain.metrics  # but their average is measured


def arrays(bad=(), rows=256):
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 4)).astype(np.float32)
    x[list(bad)] = np.nan
    columns = {"image": x, "label": (x[:, 0] > 0).astype(np.int32)}
    return Data(source=Arrays(train=columns), train="train", test=None)


def test_a_loss_that_is_not_finite_stops_with_a_diagnosis(tmp_path, caplog):
    config = experiment(data=arrays(bad=[7]), task=Classification(model=MLP(outputs=2)))
    with pytest.raises(TrainingError) as caught:
        lsm.fit(config, tmp_path)
    message = str(caught.value)
    assert "its batch is not finite in image; mend the data, or set train.skip_n" in message
    said = "data.train: column 'image' is not finite in 1 of 256 examples, the first is example 7."
    assert said in caplog.text
    step = int(message.removeprefix("step ").split(":")[0])
    batches = lsm.data.TrainBatches(arrays(bad=[7]).source.open("train", None), 64, seed=0)
    assert [np.isnan(batches.batch_at(i)["image"]).any() for i in range(step)] == [False] * (step - 1) + [True]  # fmt: skip
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_gradient_of_what_has_no_weight_is_told_of_the_batch_before(tmp_path):
    """The loss leaves out a NaN of weight 0; the gradient does not: 0 x NaN is NaN."""
    x = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
    weight = np.ones(256, np.float32)
    x[7], weight[7] = np.nan, 0.0
    columns = {"image": x, "label": (x[:, 0] > 0).astype(np.int32), "weight": weight}
    data = Data(source=Arrays(train=columns), train="train", test=None)
    config = experiment(data=data, task=Classification(model=MLP(outputs=2)))
    with pytest.raises(TrainingError) as caught:
        lsm.fit(config, tmp_path)
    batches = lsm.data.TrainBatches(data.source.open("train", None), 64, seed=0)
    bad = next(i for i in range(4) if np.isnan(batches.batch_at(i)["image"]).any()) + 1
    told = f"step {bad + 1}: the loss is not finite; its batch is finite, and that of step {bad} is"
    assert f"{told} not in image; " in str(caught.value)
    assert "mend the data" in str(caught.value)


def test_a_start_hashes_arrays_once_and_makes_one_sample(tmp_path, monkeypatch):
    """The JSON of a config holds a hash of each array; the first batch has all the shapes."""
    hashed, made = [], []

    def counted(function, calls):
        return lambda *args: (calls.append(args[-1]), function(*args))[1]

    monkeypatch.setattr(schema, "_sha256", counted(schema._sha256, hashed))
    monkeypatch.setattr(TrainBatches, "batch_at", counted(TrainBatches.batch_at, made))
    config = experiment(data=arrays(), task=Classification(model=MLP(outputs=2)))
    lsm.fit(config, tmp_path)
    assert len(hashed) == 2  # "image" and "label"
    assert made == [0]  # the devices hold the arrays
    lsm.fit(config, tmp_path)  # compared with what is saved: done already
    assert len(hashed) == 4 and made == [0, 0]


def test_skip_nonfinite_trains_through_it(tmp_path):
    config = experiment(
        data=arrays(bad=[7]),
        task=Classification(model=MLP(outputs=2)),
        train=Train(steps=40, batch_size=64, log_every=4, skip_nonfinite=True),
    )
    result = lsm.fit(config, tmp_path)
    steps = np.diff([0] + [row["step"] for row in rows(tmp_path, "train")])
    skipped = [row["skipped"] for row in rows(tmp_path, "train")]
    assert result.step == 40
    assert (steps * skipped).sum() == pytest.approx(10)  # one batch in four holds the bad example
    assert result.skipped == Result.load(tmp_path).skipped == 10
    assert lsm.fit(config, tmp_path).skipped == 10  # saved with the checkpoint
    assert "completed at step 40, 10 updates skipped as not finite, " in _closing_line(
        config, result, tmp_path
    )


def test_a_diverging_parameter_is_never_saved(tmp_path):
    config = experiment(optimizer=Adam(learning_rate=1e38))
    with pytest.raises(TrainingError, match="lower the learning rate"):
        lsm.fit(config, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    lsm.fit(experiment(), tmp_path)  # nothing is saved, so nothing speaks against another config


def test_a_state_with_an_infinity_anywhere_is_never_saved(tmp_path):
    data = arrays()
    data.source.train["image"][:] *= 1e20  # its square overflows, the loss does not
    config = experiment(data=data, task=Classification(model=MLP(widths=(), outputs=2)))
    with pytest.raises(TrainingError, match=r"step 10: opt_state/core/nu/Dense_0/kernel is not"):
        lsm.fit(config, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


class Streamed(ArrayDataset):
    """Examples of which nobody knows all before they are read."""

    def held(self):
        return iter(())


@dataclasses.dataclass(frozen=True)
class Stream(Source):
    arrays: Source

    def open(self, split, data_dir=None):
        return Streamed(self.arrays.open(split).columns)


@dataclasses.dataclass(frozen=True)
class Relabelled(Transform):
    """Makes of label 7 the class 1."""

    def draw(self, rng, examples):
        return {}

    def apply(self, batch, drawn):
        return batch | {"label": np.minimum(batch["label"], 1)}


def rare_label(**changes):
    data = arrays()
    first = lsm.data.TrainBatches(data.source.open("train"), 64, seed=0)
    label = data.source.train["label"]
    label[~np.isin(np.arange(256), first.sampling.draw(0, 0, 256, 64)[0])] = 7
    assert set(first.batch_at(0)["label"]) == {0, 1}  # a check of the first batch sees none
    data = dataclasses.replace(data, **changes)
    return experiment(data=data, task=Classification(model=MLP(outputs=2)))


def test_every_label_in_memory_is_checked_before_training(tmp_path):
    with pytest.raises(DataError, match="^task.label: a label of 7 where the model has 2 outputs"):
        lsm.fit(rare_label(), tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} <= {".lock", "checkpoints"}
    assert lsm.fit(rare_label(augment=(Relabelled(),)), tmp_path).step == 30


class Weighed(Transform):
    """Adds a weight for every row of a batch."""

    def draw(self, rng, examples):
        return {}

    def apply(self, batch, drawn):
        return {**batch, "weight": np.ones(len(batch["label"]), np.float32)}


def test_weights_that_an_augmentation_adds_are_of_a_batch_alone(tmp_path):
    data = Data(source=Digits(), augment=(Weighed(),))
    assert lsm.fit(experiment(data=data), tmp_path).step == 30


def test_a_label_that_is_met_on_the_way_stops_the_run(tmp_path):
    config = rare_label()
    config = dataclasses.replace(config, data=Data(Stream(config.data.source), test=None))
    with pytest.raises(DataError, match="^step 2: task.label: a label of 7 where the model has 2"):
        lsm.fit(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mesh": Mesh(data=3)}, MeshError, "does not fit 8 cpu device"),
        ({"train": Train(steps=1, batch_size=60)}, MeshError, "train.batch_size: 60 does not divide"),
        ({"mesh": Mesh(rules=(Rule("kernel$", (None, "model")), Rule(".*"),))}, MeshError, "axis 'model' for 'params/Dense_0/kernel' is not in the mesh"),
        ({"mesh": Mesh(data=1, fsdp=8, rules=(Rule("Dense_1/kernel$", (None, "fsdp")), Rule(".*")))}, MeshError, "fsdp=8 does not divide dimension 1 of .*, which is 10"),
        ({"mesh": Mesh(rules=(Rule("kernel$"),))}, MeshError, "no rule matches 'params/Dense_0/bias'"),
        ({"task": Classification(model=MLP(outputs=5))}, DataError, "a label of 9 where the model has 5 outputs"),
        ({"task": Classification(model=MLP(), label="lable")}, DataError, "no column 'lable'.*Did you mean 'label'"),
        ({"evaluation": Evaluation(every=10, monitor="acuracy")}, ConfigError, "no metric 'acuracy'.*Did you mean 'accuracy'"),
        ({"data": Data(source=Digits(), train="trian")}, DataError, "Did you mean 'train'"),
        ({"train": Train(steps=1, batch_size=8000)}, ConfigError, "train.batch_size: 8000 given; 'train\\[:80%\\]' has 1150 examples"),
        ({"train": Train(steps=30.5)}, ConfigError, "train.steps: 30.5 given"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_training(changes, error, message, tmp_path):
    with pytest.raises(error, match=message) as caught:
        lsm.fit(experiment(**changes), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_run_of_an_earlier_version_goes_on(finished, tmp_path):
    """Its config lacks fields that have come since: they are at their defaults."""
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run/config.json"
    saved = json.loads(path.read_text())
    for field in ("start", "data.sampling", "train.gradient", "evaluation.metrics"):
        *parents, last = field.split(".")
        node = saved
        for parent in parents:
            node = node[parent]
        del node[last]
    path.write_text(json.dumps(saved))
    assert lsm.fit(experiment(), tmp_path / "run").step == 30
    saved["train"]["seed"] = 1
    path.write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match="another config: train.seed: 1 -> 0. Use"):
        lsm.fit(experiment(), tmp_path / "run")


def go_on(finished, tmp_path, change=None, **changes):
    """Starts a copy of a finished run again, its files changed; returns the line of the refusal."""
    shutil.copytree(finished[0], tmp_path / "run")
    if change:
        change(tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        lsm.fit(experiment(**changes), tmp_path / "run")
    return str(caught.value)


def test_checkpoints_without_their_config_are_refused(finished, tmp_path):
    told = go_on(finished, tmp_path, lambda run: (run / "config.json").unlink())
    assert "run holds a run of another config: its config.json is not there. Use another" in told
    assert lsm.fit(experiment(), tmp_path / "run", allow_config_change=True).step == 30


def test_another_config_file_is_said_with_the_command_that_began(finished, tmp_path):
    """And of many differences the first few."""
    began = Origin(config="/a b/iris.py", arg="x", overrides={"train.seed": "3"})
    change = lambda run: (run / "origin.json").write_bytes(began.to_json())  # noqa: E731
    told = go_on(
        finished, tmp_path, change, optimizer=SGD(learning_rate=0.1), evaluation=Evaluation()
    )
    assert told.count(" -> ") == 5 and "; ... (" in told and "\n" not in told
    words = "'--config=/a b/iris.py:x' --config.train.seed=3"
    alone = f"python -m lsm --workdir={tmp_path / 'run'}"
    assert f" more). It began with {words}; `{alone}` goes on with that. Use another" in told


@pytest.mark.parametrize("file", ["config.json", "data.json"])
def test_a_damaged_record_of_a_run_is_one_line(file, finished, tmp_path):
    told = go_on(finished, tmp_path, lambda run: (run / file).write_bytes(b"{\xff"))
    assert f"run/{file} is damaged (" in told and "\n" not in told


def test_a_folder_in_the_place_of_a_record_is_one_line(finished, tmp_path):
    def change(run):
        (run / "config.json").unlink()
        (run / "config.json").mkdir()

    assert "run/config.json is damaged (" in go_on(finished, tmp_path, change)


def test_a_run_that_did_not_say_what_its_data_was_goes_on(finished, tmp_path):
    """Those of earlier versions."""
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run/data.json").unlink()
    (tmp_path / "run/result.json").unlink()
    lsm.fit(experiment(), tmp_path / "run")
    assert json.loads((tmp_path / "run/data.json").read_text()) == {
        "train": {"examples": 1150}, "validation": {"examples": 287}, "test": {"examples": 360}
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Counting(Source):
    """A user's own source, which says nothing of what tells its data."""

    size: int = dataclasses.field(default=256, metadata={"alters_run": False})

    identity: dict | None = dataclasses.field(default=None, metadata={"alters_run": False})

    def open(self, split, data_dir=None):
        data = arrays(rows=self.size).source.open("train", data_dir)
        return ArrayDataset(data.columns, identity=self.identity)


def test_what_a_user_s_own_source_tells_is_compared_and_else_its_length(tmp_path):
    def run(**told):
        data = Data(source=Counting(**told), test=None)
        task = Classification(model=MLP(outputs=2))
        return lsm.fit(
            experiment(data=data, task=task, train=Train(steps=2, batch_size=64)), tmp_path
        )

    told = {"files": ("a", 1), "seen": np.arange(3)}
    assert run(identity=told) == run(identity=told)  # compared as JSON, which has no tuples
    for changes, line in (
        ({"size": 300, "identity": told}, "data.train.examples: 256 -> 300"),
        ({"identity": told | {"files": ("a", 2)}}, "data.train.files.1: 1 -> 2"),
        ({"identity": None}, r"data.train.files.0: 'a' -> \(absent\); .*"),
    ):
        with pytest.raises(ConfigError, match=f"holds a run of another config: {line}. Use"):
            run(**changes)


def test_only_the_latest_and_the_best_are_kept(tmp_path):
    state = {"w": jax.numpy.arange(4.0)}
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, best in enumerate([1, 2, 2, 2, 2, 2], 1):
        checkpoints.save(step, state, {"step": step, "best_step": best})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.progress(2) == {"step": 2, "best_step": 2}
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep=2)  # a run that goes on
    checkpoints.restore(state, 6)
    for step, best in ((7, 2), (8, 2), (9, 9), (10, None)):
        checkpoints.save(step, state, {"best_step": best})
        checkpoints.wait()
        assert checkpoints.steps() == {7: [2, 6, 7], 8: [2, 7, 8], 9: [8, 9], 10: [9, 10]}[step]
    checkpoints.close()


def test_restoring_refuses_another_dtype(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jax.numpy.ones(4)}, {})
    checkpoints.wait()
    with pytest.raises(CheckpointError, match=r"'w' is \(4,\) float32 there and \(4,\) bfloat16"):
        checkpoints.restore({"w": jax.ShapeDtypeStruct((4,), jax.numpy.bfloat16)}, 1)
    checkpoints.close()


def test_checksums_see_any_bit_and_no_layout():
    random = np.random.default_rng(0)
    state = {"w": random.normal(size=(6, 8)).astype("f"), "n": np.arange(8, dtype=np.int32)}
    expected = jax.device_get(checksums(state))
    mesh = make_mesh(Mesh(data=1, fsdp=8))
    layout = shard(state, mesh, [Rule(".*", Fsdp(min_size=1))])
    assert jax.device_get(checksums(jax.device_put(state, layout))) == expected
    for _ in range(50):
        place, bit = random.integers(48), random.integers(32)
        bad = state["w"].copy()
        bad.reshape(-1).view(np.uint32)[place] ^= np.uint32(1) << np.uint32(bit)
        assert checksums({"w": bad})["w"] != expected["w"]
    assert checksums({"w": state["w"][::-1]})["w"] != expected["w"]


@pytest.mark.parametrize("dtype", ["bool", "int4", "bfloat16", "complex64"])
def test_checksums_of_dtypes_that_a_transform_may_keep(dtype):
    state = jax.numpy.arange(6) - 2  # among others, True and False
    sums = [checksums(state.at[2].set(value).astype(dtype)) for value in (0, 1)]
    assert sums[0] != sums[1]


def test_fingerprint_is_of_the_last_checkpoint(finished):
    workdir, result = finished
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    trainer = lsm.train.trainer.Trainer.of(experiment(), None)
    state = checkpoints.restore(trainer.program.abstract_state, 30)
    assert fingerprint(state.params) == result.fingerprint
    checkpoints.close()


def test_profile_traces_its_window(tmp_path):
    lsm.fit(experiment(), tmp_path, profile="3:4")
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    for window in ("4:3", "0:3", "3", "²:3", "1:" + "9" * 5000):
        with pytest.raises(ConfigError, match=f"--profile: '{window[:9]}.* FIRST:LAST is needed"):
            lsm.fit(experiment(), tmp_path, profile=window)


@pytest.mark.parametrize("content", [None, b"\xff", b"{", b"[" * 100_000])
def test_a_damaged_config_is_one_line(finished, tmp_path, content):
    shutil.copytree(finished[0], tmp_path / "run")
    config = tmp_path / "run/config.json"
    config.unlink()
    config.mkdir() if content is None else config.write_bytes(content)
    for act in (lambda: lsm.fit(experiment(), config.parent), lambda: lsm.load(config.parent)):
        with pytest.raises(ConfigError, match=r"config\.json(:| is damaged).*") as error:
            act()
        assert "\n" not in str(error.value)


def test_profile_of_a_run_that_goes_on(tmp_path, monkeypatch, caplog):
    traced = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: traced.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: traced.append("stop"))
    profile = Profile("10:20", tmp_path)
    profile.expect(15, 100)
    for step in range(15, 20):
        profile.at(step)
    assert traced == ["start"] and not caplog.text
    for step in (20, 21, 22):
        profile.at(step)
    assert traced == ["start", "stop"]
    for first, last in ((21, 100), (1, 9)):
        Profile("10:20", tmp_path).expect(first, last)
        assert "none of the steps 10 to 20 is still to come" in caplog.messages.pop()


def test_batch_norm_would_count_what_fills_poisson_batches():
    model = CNN(widths=(4,), batch_norm=True, outputs=10)
    given = experiment(
        task=Classification(model=model),
        data=Data(source=Digits(), sampling=Poisson(expected=4)),
        train=Train(steps=2, batch_size=32),
    )
    with pytest.raises(
        ConfigError, match="data.sampling: Poisson given, .* batch norm would count"
    ):
        Trainer.of(given, None)


def test_a_transform_for_evaluation_that_is_no_tuple_is_one_line():
    given = experiment(data=Data(source=Digits(), evaluate=CenterCrop(8)))
    with pytest.raises(ConfigError, match="data.evaluate: CenterCrop.* given"):
        Trainer.of(given, None)
