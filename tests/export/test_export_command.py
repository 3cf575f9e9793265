"""The command, on a run with data; pictures and texts made columns; statistics."""

import dataclasses
import json

import numpy as np
import pytest

import lsm
from lsm import Data, Experiment, Train
from lsm.data import Arrays, Digits, Texts, Words, images
from lsm.data.inputs import Inputs
from lsm.export import __main__ as command
from lsm.export import card, load, statistics
from lsm.export.write import write
from lsm.models import MLP
from lsm.optim import SGD
from lsm.tasks import Classification
from tests.export.exports import trained

EXPERIMENT = Experiment(
    name="small",
    task=Classification(model=MLP(widths=(4,), outputs=10), mean=0.3, std=0.5),
    data=Data(source=Digits(), train="train[:90%]", validation="train[90%:]", test=None),
    optimizer=SGD(learning_rate=0.1),
    train=Train(steps=1, batch_size=64),
    writers=(),
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a run, and that of its export."""
    run, out = (tmp_path_factory.mktemp("runs") / name for name in ("run", "out"))
    lsm.fit(EXPERIMENT, run)
    words = [f"--workdir={run}", f"--out={out}", "--statistics", "--platforms=cpu,tpu"]
    assert command.main(words) == 0
    return run, out


def test_a_run_is_exported_with_its_figures(exported):
    run, out = exported
    model = load(out)
    assert (model.platforms, model.labels) == (("cpu", "tpu"), tuple("0123456789"))
    assert model.preprocessing["in_the_model"] == {"mean": 0.3, "std": 0.5}
    figures = json.loads((run / "result.json").read_text())["metrics"]["validation"]
    assert (
        f"| validation | accuracy | {figures['accuracy']:.4g} |" in (out / "README.md").read_text()
    )
    step = json.loads((run / "result.json").read_text())["step"]
    told = card.figures(run, step - 1)
    assert told == f"The figures of the run are those of step {step}, which this is not."


def test_statistics_are_those_of_the_split(exported):
    run, out = exported
    found, trained = load(out).statistics, lsm.load(run)
    batch = Digits().open("train")
    first = len(batch) - found["examples"]
    given = batch.take(np.arange(first, len(batch)))
    expected = trained.predict({"image": given["image"]})["probability"]
    assert found["split"] == "validation" and found["examples"] == len(expected)
    told = found["outputs"]["probability"]
    np.testing.assert_allclose(told["mean"], 0.1, atol=1e-6)
    np.testing.assert_allclose(found["inputs"]["image"]["std"], given["image"].std(), rtol=1e-6)
    assert np.shape(told["counts"]) == (10, 20) and np.sum(told["counts"]) == expected.size
    by_class = [np.histogram(column, told["edges"])[0] for column in expected.astype(float).T]
    np.testing.assert_allclose(told["counts"], by_class, atol=1)


def test_statistics_of_texts_in_buckets_and_of_bfloat16():
    """Batches are as wide as their bucket; then there is one histogram of all columns."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(8, width)).astype(np.float32) for width in (5, 12)]
    half, truth = rng.normal(size=(8, 2)).astype("bfloat16"), np.arange(8) % 4 == 0
    beside = {"half": half, "truth": truth, "name": np.array(["a"] * 8)}
    found = statistics._all([{"score": part, **beside} for part in parts])
    assert found.keys() == {"score", "half", "truth"}
    values = np.concatenate([part.ravel() for part in parts])
    assert found["score"]["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert np.shape(found["score"]["counts"]) == (20,)
    assert np.shape(found["half"]["counts"]) == (2, 20)
    assert found["half"]["max"] == half.astype(float).max() and found["truth"]["mean"] == 0.25


def test_files_of_pictures_are_read_as_the_run_does(exported, tmp_path):
    run, out = exported
    pixels = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16, 1)
    path = tmp_path / "a.png"
    path.write_bytes(images.encode_png(pixels))
    model = load(out)
    found = model(model.preprocess(str(path)))
    np.testing.assert_allclose(
        found["probability"], lsm.load(run).predict(str(path))["probability"], atol=1e-6
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out=x"], "--workdir is needed"),
        (["--workdir=nowhere", "--out=x"], "nowhere"),
        (["--workdir=nowhere", "--out=."], "--out: . is there already; give a new folder."),
    ],
)
def test_a_slip_on_the_command_line_is_one_line(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and not list(tmp_path.iterdir())


def test_texts_are_encoded_as_the_run_does(tmp_path):
    pytest.importorskip("tokenizers", reason="needs pip install 'lsm[text]'")
    lines = np.empty(8, object)
    lines[:] = ["the cat sat on a mat"] * 8
    source = Texts(
        Arrays({"text": lines, "label": np.arange(8) % 2}), Words(16), {"tokens": "text"}, 12
    )
    run = dataclasses.replace(trained("lstm"), inputs=Inputs.of(source.open("train")))
    write(run, tmp_path / "out")
    model, texts = load(tmp_path / "out"), ["the mat", "a cat sat on the mat"]
    given = model.preprocess(texts)
    assert given.keys() == {"tokens", "tokens_length"}
    np.testing.assert_array_equal(model(given)["probability"], run.predict(texts)["probability"])
    assert model.content("tokenizer.json").decode() == run.inputs.encoder.tokenizer
