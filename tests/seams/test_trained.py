"""Trained models in Python: loaded, asked, measured by figures that are not means."""

import dataclasses
import itertools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score
from user_tasks import experiment, pictures

import lsm
from lsm import Data, Evaluation, Mesh
from lsm.config import flags
from lsm.data import Arrays, images
from lsm.errors import CheckpointError, ConfigError, DataError, MeshError
from lsm.evaluate import F1, CalibrationError, Confusion, Metric, Mistakes, RocAuc, compute
from lsm.models import MLP
from lsm.tasks import Classification
from lsm.writers import Jsonl


class Clash(F1):
    def compute(self, accumulator):
        return {"loss": -1.0}


@pytest.mark.slow
def test_load_rebuilds_the_experiment_from_its_json(tmp_path):
    case = flags.load(
        "experiments/configs/digits/cnn.py",
        {"train.steps": "4", "evaluation.every": "2", "optimizer.ema": "0.5"},
    )
    result = lsm.fit(dataclasses.replace(case, writers=()), tmp_path)
    run = lsm.load(tmp_path)
    # Batch norm's statistics are averaged as the parameters are, here and in the evaluation.
    test = case.data.source.open(case.data.test)
    figures = case.task.evaluate(
        run.params, run.model_state, test.take(np.arange(len(test))), step=run.step
    )
    assert float(figures["loss"].mean) == pytest.approx(result.metrics["test"]["loss"], rel=1e-4)
    assert run.experiment.task == case.task
    digits = case.data.source.open("test").take(np.arange(11))
    many = run.predict({"image": digits["image"]})
    assert many["label"].shape == (11,) and many["probability"].shape == (11, 10)
    one = lsm.load(tmp_path, devices=jax.devices()[:1]).predict({"image": digits["image"]})
    sharded = lsm.load(tmp_path, mesh=Mesh(data=1, fsdp=8)).predict(digits)
    for other in (one, sharded):
        np.testing.assert_allclose(many["probability"], other["probability"], atol=1e-5)
    by_hand, _ = run.experiment.task.forward(
        run.params, run.model_state, digits, {}, False, run.step
    )
    np.testing.assert_allclose(many["probability"], jax.nn.softmax(by_hand), rtol=1e-4, atol=1e-5)


def test_load_says_what_it_cannot_rebuild(base, tmp_path):
    with pytest.raises(
        ConfigError, match=r"data.source.train.*Give --config, or load\(.*experiment="
    ):
        lsm.load(base)
    with pytest.raises(CheckpointError, match="no checkpoints"):
        lsm.load(tmp_path, experiment=experiment())
    with pytest.raises(CheckpointError, match=r"no step 7 .*; there are: .*4"):
        lsm.load(base, experiment=experiment(), step=7)
    with pytest.raises(ConfigError, match=r"step: 'bset' given.*Did you mean 'best'"):
        lsm.load(base, experiment=experiment(), step="bset")
    with pytest.raises(MeshError):
        lsm.load(base, experiment=experiment(), mesh=Mesh(data=3))


def test_predict_refuses_another_model_in_one_line(base):
    wide = experiment(Classification(model=MLP(widths=(9,), outputs=4)))
    with pytest.raises(ConfigError, match=r"another task: task.model.widths.0: 8 -> 9"):
        lsm.load(base, experiment=wide)
    run = lsm.load(base, experiment=experiment())
    for given in (np.zeros((3, 5), np.float32), {"image": np.zeros((3, 5), np.float32)}):
        with pytest.raises(DataError, match=r"shape \(3, 5\) given for .*'image'; \(N, 12\) is n"):
            run.predict(given)
    unknown = dataclasses.replace(run, inputs=None)  # of an earlier version
    with pytest.raises(CheckpointError, match="does not fit MLP") as error:  # of 12 inputs
        unknown.predict({"image": np.zeros((3, 5), np.float32)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        ({}, "columns of lengths {}"),
        ({"image": np.float32(1)}, "shape () given for column 'image'; (N, 12) is needed"),
        ({"image": np.zeros((0, 12))}, "'image': 0"),
        ({"image": np.zeros((3, 12)), "label": np.zeros(2)}, "'image': 3, 'label': 2"),
        ({"picture": np.zeros((3, 12))}, "no column 'image'"),
    ],
)
def test_rubbish_to_predict_is_one_line(base, batch, error):
    with pytest.raises(DataError) as raised:
        lsm.load(base, experiment=experiment()).predict(batch)
    assert error in str(raised.value) and "\n" not in str(raised.value)


def test_predictions_of_every_example_in_order(base, tmp_path):
    case = experiment(data=Data(source=Arrays(train=pictures(), test=pictures(37, seed=2))))
    step, files = lsm.predict_run(case, base)
    rows = [json.loads(line) for line in files["test"].read_text().splitlines()]
    assert step == 4 and [row["example"] for row in rows] == list(range(37))
    expected = lsm.load(base, experiment=case).predict(pictures(37, seed=2))
    np.testing.assert_array_equal([row["label"] for row in rows], expected["label"])
    np.testing.assert_allclose(
        [row["probability"] for row in rows], expected["probability"], rtol=1e-5
    )
    assert not list(pathlib.Path(base / "predictions").glob("*.part"))


def test_host_metrics_equal_scikit_learn_whatever_the_batch(base, tmp_path):
    test = pictures(45, seed=3)
    found = []
    for batch_size in (8, 64):
        metrics = (RocAuc(), F1(by_class=True), CalibrationError(), Confusion())
        evaluation = Evaluation(every=2, batch_size=batch_size, metrics=metrics)
        case = experiment(
            data=Data(source=Arrays(train=pictures(), test=test)), evaluation=evaluation
        )
        _, figures = lsm.evaluate_run(case, base)
        found.append(figures["test"])
    predicted = lsm.load(base, experiment=case).predict(test)
    for figures in found:
        np.testing.assert_allclose(
            figures["roc_auc"],
            roc_auc_score(test["label"], predicted["probability"], multi_class="ovr"),
            rtol=1e-6,
        )
        np.testing.assert_allclose(
            figures["f1"], f1_score(test["label"], predicted["label"], average="macro"), rtol=1e-6
        )
        confusion = confusion_matrix(test["label"], predicted["label"], labels=range(4)).ravel()
        pairs = itertools.product(range(4), range(4))
        assert [figures[f"confusion/{i}/{j}"] for i, j in pairs] == confusion.tolist()
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert images.decode(base / "confusion.png").shape[2] == 3


def test_the_best_checkpoint_by_a_host_metric(tmp_path):
    columns = pictures()
    case = experiment(
        data=Data(
            source=Arrays(train=columns, validation=columns), validation="validation", test=None
        ),
        evaluation=Evaluation(every=2, monitor="roc_auc", metrics=(RocAuc(),)),
    )
    result = lsm.fit(dataclasses.replace(case, writers=(Jsonl(),)), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    figures = {row["step"]: row["roc_auc"] for row in rows if row["split"] == "validation"}
    assert result.best_step == max(figures, key=figures.get) and len(figures) == 2
    with pytest.raises(ConfigError, match="evaluation.monitor: no metric 'roc_au'.*'roc_auc'"):
        lsm.fit(
            dataclasses.replace(
                case, evaluation=dataclasses.replace(case.evaluation, monitor="roc_au")
            ),
            tmp_path / "other",
        )


@pytest.mark.parametrize(
    ("metrics", "error", "line"),
    [
        ((F1(label="lable"),), DataError, "no column 'lable'.*Did you mean 'label'"),
        ((F1(), F1()), ConfigError, "both give 'f1'"),
        ((Mistakes(),), DataError, "Mistakes.image: .0, 12. given"),
        ((F1(prediction="lable"),), DataError, "F1.prediction: there is no 'lable'"),
        ((Clash(),), ConfigError, "'loss' is a metric of the task's own"),
    ],
    ids=["column", "twice", "image", "prediction", "clash"],
)
def test_metrics_that_do_not_fit_are_refused_at_the_start(tmp_path, metrics, error, line):
    with pytest.raises(error, match=line):
        lsm.fit(experiment(evaluation=Evaluation(metrics=metrics)), tmp_path)


@dataclasses.dataclass(frozen=True)
class Scripted(Metric):
    """Gives one of `values` after the other, whatever it sees."""

    values: tuple = ()
    columns = ()

    def init(self):
        return None

    def update(self, accumulator, predictions, batch):
        return "seen"

    def compute(self, accumulator):
        return {"scripted": SCRIPT.pop(0) if accumulator else float("nan")}


SCRIPT = []


@pytest.mark.parametrize(
    ("script", "better", "best"),
    [
        ([float("nan"), 0.2, 0.9, 0.3], None, 3),
        ([0.2, float("nan"), 0.9, 0.1], None, 3),
        ([0.2, 0.9, 0.1, 0.3], "lower", 3),
    ],
    ids=["NaN first", "NaN later", "lower"],
)
def test_the_best_step_of_a_metric_of_ones_own(tmp_path, script, better, best):
    SCRIPT[:] = [*script, 0.0]  # the last for the evaluation at the end
    case = experiment(
        data=Data(
            source=Arrays(train=pictures(), validation=pictures()),
            validation="validation",
            test=None,
        ),
        evaluation=Evaluation(every=1, monitor="scripted", better=better, metrics=(Scripted(),)),
    )
    assert lsm.fit(case, tmp_path).best_step == best


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        (0.5, "compute: 0.5 returned; a dict of numbers"),
        ({"scripted": "x"}, "a dict of numbers"),
        ({"other": 0.5}, "figures other where it has scripted of nothing"),
    ],
    ids=["number", "text", "name"],
)
def test_what_a_metric_computes_is_checked(figures, line):
    class Wrong(Scripted):
        def compute(self, accumulator):
            return figures if accumulator else {"scripted": float("nan")}

    with pytest.raises(ConfigError, match=line):
        compute((Wrong(),), ("seen",))


def test_a_class_of_a_script_is_the_same_when_imported(base, tmp_path):
    shutil.copytree(base, tmp_path / "run")
    path = tmp_path / "run/config.json"
    saved = json.loads(path.read_text())
    name = saved["task"]["class"].rpartition(".")[2]
    saved["task"]["class"] = f"__main__.{name}"
    path.write_text(json.dumps(saved))
    assert lsm.load(tmp_path / "run", experiment=experiment()).step == 4
    saved["task"]["class"] = "__main__.Other"
    path.write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match="task.class: '__main__.Other' ->"):
        lsm.load(tmp_path / "run", experiment=experiment())
