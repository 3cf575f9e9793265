"""ONNX files against the runs that they were made of, by onnxruntime."""

import json
import sys
import types

import jax
import numpy as np
import pytest

import lsm
from lsm import Data, Experiment, Train
from lsm.data import Digits, Files, Subwords, Texts, Words
from lsm.errors import ConfigError
from lsm.export import onnx, page
from lsm.models import Classifier, ResNet, families
from lsm.optim import AdamW
from lsm.tasks import Classification, TextClassification

slow = pytest.mark.slow

BLOCKS = {"layers": 2, "heads": 2, "width": 16}


def pictures(model):
    return Classification(model=model), Data(source=Digits(), test=None)


def texts(model, folder):
    lines = [("a good film", 1), ("a bad one", 0), ("good good", 1), ("so bad it is good", 1)]
    file = folder / "texts.csv"
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in 8 * lines))
    source = Texts(Files(str(file)), Words(12), {"tokens": "text"}, 8)
    return TextClassification(model=model), Data(source=source, test=None)


CASES = {
    "vit": lambda _: pictures(families.vit_ti(outputs=10, stem=4, **BLOCKS)),
    "bert": lambda folder: texts(
        Classifier(families.bert_base(vocabulary=12, context=8, **BLOCKS)), folder
    ),
}


def trained(case, workdir):
    task, data = case
    train = Train(steps=20, batch_size=16)  # heads begin as zeros
    optimizer = AdamW(learning_rate=1e-2)
    made = Experiment(name="one", task=task, data=data, optimizer=optimizer, train=train)
    lsm.fit(made, workdir)
    return lsm.load(workdir)


@slow
def test_a_run_on_digits_answers_alike_in_onnx(digits, convert, answers, tmp_path):
    file = tmp_path / "digits.onnx"
    assert "of the run's answers" in convert(
        "lsm.export.onnx", f"--workdir={digits}", f"--out={file}"
    )
    batch = {"image": Digits().open("test").take(np.arange(7))["image"]}
    expected, found = lsm.load(digits).predict(batch), answers(file, batch)
    assert found["label"] == expected["label"].tolist()
    np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-5)


@slow
@pytest.mark.parametrize("name", CASES)
def test_models_answer_alike_in_onnx(name, convert, answers, tmp_path):
    run, file = trained(CASES[name](tmp_path), tmp_path / "run"), tmp_path / "one.onnx"
    convert("lsm.export.onnx", f"--workdir={tmp_path / 'run'}", f"--out={file}")
    example = run.experiment.data.source.open("train").take(np.arange(3))
    batch = {n: x for n, x in example.items() if n in ("image", "tokens", "tokens_length")}
    expected, found = run.answered(batch), answers(file, batch)
    assert np.ptp(expected["probability"]) > 0.01
    np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-5)


@slow
def test_a_model_that_cannot_be_converted_is_named_and_nothing_is_left(convert, tmp_path):
    trained(pictures(ResNet(depths=(1,), width=4, outputs=10)), tmp_path / "run")
    file = tmp_path / "one.onnx"
    told = convert("lsm.export.onnx", f"--workdir={tmp_path / 'run'}", f"--out={file}", fails=True)
    (line,) = [line for line in told.splitlines() if line.startswith("error:")]
    assert "jax2onnx cannot convert ResNet: " in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@slow
def test_without_jax2onnx_the_environment_is_told_of(digits, tmp_path, capsys):
    assert onnx.main([f"--workdir={digits}", f"--out={tmp_path / 'one.onnx'}"]) == 1
    assert "jax2onnx is not installed" in capsys.readouterr().err


@pytest.mark.slow
def test_of_a_pair_of_texts_the_types_are_a_column_too(tmp_path):
    rows = [{"a": "a good", "b": "film", "label": k % 2} for k in range(16)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "film"]))
    words = Subwords(path=str(tmp_path))
    source = Texts(Files(str(tmp_path / "a.jsonl")), words, {"tokens": ("a", "b")}, 8)
    model = Classifier(families.bert_base(vocabulary=8, context=8, **BLOCKS))
    run = trained((TextClassification(model=model), Data(source=source, test=None)), tmp_path / "r")
    assert [*onnx.facts(run)["columns"]] == ["tokens", "tokens_length", "tokens_types"]


def test_without_onnx_the_environment_is_told_of(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="onnx is not installed; it is in the environment of"):
        page._facts(b"")


@pytest.mark.parametrize(
    ("said", "expected", "apart"),
    [
        ([np.nan, 1.0], [1.0, 1.0], np.nan),
        ([-np.inf, 1.25], [-np.inf, 1.0], 0.25),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
    ],
)
def test_what_is_no_number_is_no_equal_answer(said, expected, apart, monkeypatch):
    def answered(batch):
        return {"y": np.resize(np.float32(expected), len(batch["x"]) + 1)}

    session = types.SimpleNamespace(
        get_outputs=lambda: [types.SimpleNamespace(name="y")],
        run=lambda names, batch: [np.resize(np.float32(said), len(batch["x"]) + 1)],
    )
    runtime = types.SimpleNamespace(
        SessionOptions=types.SimpleNamespace, InferenceSession=lambda *_: session
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    known = types.SimpleNamespace(encoder=None)
    run = types.SimpleNamespace(answered=answered, inputs_known=known)
    found = onnx._apart(run, b"", {"x": jax.ShapeDtypeStruct((), np.float32)})
    np.testing.assert_equal(found, apart)
