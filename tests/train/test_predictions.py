"""Predictions of files: pictures and lines of text, in the names that a run has learnt."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image

import lsm
from lsm import Data, Experiment, Train
from lsm.data import ArrayDataset, CharText, Digits, Files, Split, SplitSource, Texts, Words
from lsm.errors import ConfigError, DataError
from lsm.models import GPT, MLP, EncoderDecoder, Transformer
from lsm.optim import Adam
from lsm.tasks import Classification, LanguageModelling, SequenceToSequence, Task
from lsm.train import given, predictions
from lsm.train.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Verse(SplitSource):
    """One text, in each of its splits."""

    def shards(self, data_dir=None):
        return {"train": [1], "test": [1]}

    def open_split(self, name, data_dir=None):
        text = np.array(["to be or not to be"], object)
        return ArrayDataset({"text": text})


def experiment(task, source, steps=2, test="test"):
    return Experiment(
        name="small",
        task=task,
        data=Data(source=source, test=test),
        optimizer=Adam(learning_rate=1e-2),
        train=Train(steps=steps, batch_size=8),
        writers=(),
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("digits")
    task = Classification(model=MLP(widths=(9,)))
    lsm.fit(experiment(task, Digits(), steps=1, test=None), workdir)
    return workdir


@pytest.fixture(scope="module")
def verse(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("verse")
    # No size is a multiple of 8: what each of eight devices saves a part of compiles on each.
    sizes = Transformer(layers=1, heads=2, width=12, hidden=20)
    model = GPT(vocabulary=9, transformer=sizes, context=7)
    source = CharText(Verse(), length=7)
    lsm.fit(experiment(LanguageModelling(model=model), source, steps=1, test=None), workdir)
    return workdir


@pytest.fixture
def pictures(tmp_path):
    """A folder of three pictures of the run's size, with something else in it; and their pixels."""
    pixels = Digits().open("test").take(np.arange(3))["image"]
    for number, picture in enumerate(pixels):
        Image.fromarray(picture[..., 0]).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("none")
    return tmp_path, pixels


def test_an_array_or_files_of_pictures(digits, pictures):
    folder, pixels = pictures
    run = lsm.load(digits)
    by_name = run.predict({"image": pixels})
    assert by_name["class"].tolist() == [str(label) for label in by_name["label"]]
    for asked in (pixels, sorted(folder.glob("*.png"))):
        for name, x in run.predict(asked).items():
            np.testing.assert_array_equal(x, by_name[name])


def test_rows_of_pictures_as_csv_and_jsonl(digits, pictures):
    folder, pixels = pictures
    expected = lsm.load(digits).predict(pixels)
    table, lines = folder / "out" / "a.csv", folder / "out" / "a.jsonl"
    assert lsm.predict_files(digits, [str(folder)], table) == 3
    assert lsm.predict_files(digits, [f"{folder}/[01].png", f"{folder}/2.png"], lines) == 3
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["file"] for row in rows] == [f"{folder}/{i}.png" for i in range(3)]
    np.testing.assert_array_equal([row["label"] for row in rows], expected["label"])
    with table.open() as file:
        read = list(csv.DictReader(file))
    assert [row["class"] for row in read] == [row["class"] for row in rows]
    assert [json.loads(row["probability"]) for row in read] == [row["probability"] for row in rows]


def test_columns_are_taken_as_the_run_s_own_in_either_form(digits):
    """Whole numbers of any width are pixels where training's were, and fractions are refused."""
    run, pixels = lsm.load(digits), Digits().open("test").take(np.arange(9))["image"]
    expected = run.predict(pixels)["label"]
    for asked in (pixels.astype(np.int64), {"image": pixels.astype(np.int64)}):
        np.testing.assert_array_equal(run.predict(asked)["label"], expected)
    for asked in (pixels / 255, {"image": pixels.astype(np.float32)}):
        with pytest.raises(DataError, match="predict: column 'image' is .*, and uint8 in training"):
            run.predict(asked)
    with pytest.raises(
        DataError, match=r"shape \(9, 4, 8, 1\) given for column 'image'; \(N, 8, 8"
    ):
        run.predict({"image": pixels[:, :4]})


def test_lines_of_text(verse, tmp_path):
    run, texts = lsm.load(verse), ["to be", "or not t", "be"]
    found = run.predict(texts)
    assert [len(row) for row in found["log_probability"]] == [4, 7, 1]
    for row, text in enumerate(texts):  # whatever they are padded to
        alone = run.predict(text)
        np.testing.assert_allclose(
            alone["log_probability"][0], found["log_probability"][row], atol=1e-5
        )
        assert alone["text"][0] == found["text"][row] and len(alone["text"][0]) == len(text) - 1
    (tmp_path / "in.txt").write_text("to be\n\nbe or\n")
    assert lsm.predict_files(verse, [str(tmp_path / "in.txt")], tmp_path / "out.jsonl") == 2
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == [1, 3] and rows[0]["text"] == found["text"][0]


def test_a_line_ends_at_its_end_alone(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\u2028two\nthree\x0cfour\r\n\nfi\rve".encode())
    found = [(where["line"], text) for where, text in given._lines(file, False)]
    assert found == [(1, "one\u2028two"), (2, "three\x0cfour"), (4, "fi\rve")]


def test_texts_of_a_table_are_in_the_run_s_column(verse, tmp_path):
    table, out = tmp_path / "a.csv", tmp_path / "out.jsonl"
    table.write_text("label,text\n1,to be\n0,be or\n")
    assert lsm.predict_files(verse, [str(table)], out) == 2
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["file"], row["row"]) for row in rows] == [(str(table), 1), (str(table), 2)]
    assert [row["text"] for row in rows] == list(
        lsm.load(verse).predict(["to be", "be or"])["text"]
    )
    lines, both = tmp_path / "b.txt", tmp_path / "both.csv"
    lines.write_text("to be\n")
    with pytest.raises(
        DataError, match=r"one header, file, row, .* and .*b.txt gives file, line, "
    ):
        lsm.predict_files(verse, [str(table), str(lines)], both)
    assert not both.exists()
    table.write_text("label,text\n1,to be\n0,to be or not to be\n")
    with pytest.raises(DataError, match=r"a.csv row 2: predict: a text of 18 characters"):
        lsm.predict_files(verse, [str(table)], out)
    table.write_text("label\n1\n")
    with pytest.raises(DataError, match=r"a.csv has no column 'text'; it has label"):
        lsm.predict_files(verse, [str(table)], out)


def test_pairs_of_a_table_are_in_the_columns_that_the_run_s_files_have(tmp_path):
    files = Files("own.csv", {"first": "q", "second": "a"})
    source = Split(Texts(files, Words(9), {"tokens": ("first", "second")}, 8), {"train": 1.0})
    run = SimpleNamespace(
        column="tokens",
        inputs_known=SimpleNamespace(encoder=SimpleNamespace(columns=source.source.columns)),
        experiment=SimpleNamespace(data=SimpleNamespace(source=source)),
    )
    (tmp_path / "a.jsonl").write_text('{"a": "She.", "q": "Who?"}\n')
    (tmp_path / "b.txt").write_text("When?\tNow.\n")
    found = [text for _, text in given._texts(run, sorted(tmp_path.iterdir()))]
    assert found == [("Who?", "She."), ("When?", "Now.")]


class Letters(tuple):
    """Names of tokens that make a text."""

    def text(self, ids):
        return "".join(self[int(i)] for i in ids)


def test_texts_that_a_task_names_are_plain(tmp_path):
    """A translation's are an array of objects, whose items are str already."""
    blocks = Transformer(layers=1, heads=2, width=8, hidden=8)
    model = EncoderDecoder(vocabulary=5, encoder=blocks, decoder=blocks, context=65)
    found = [{"tokens": np.array([[1, 4], [2, 3]]), "length": np.array([2, 1])}]
    rows = predictions._rows_of(SequenceToSequence(model=model), found, Letters("abcde"))
    assert predictions._write(tmp_path / "rows.jsonl", rows) == 2
    told = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert told[0] == {"tokens": [1, 4], "length": 2, "text": "be"} and told[1]["text"] == "c"


def test_rubbish_leaves_nothing(digits, verse, pictures, tmp_path):
    folder, _ = pictures
    output = tmp_path / "out" / "a.jsonl"
    (folder / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"picture .*bad.png cannot be read"):
        lsm.predict_files(digits, [str(folder)], output)
    with pytest.raises(DataError, match=r"--input: .*nowhere.*: no such file or folder"):
        lsm.predict_files(digits, ["nowhere/*.png"], output)
    (folder / "binary.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"text .*binary.txt cannot be read"):
        lsm.predict_files(verse, [str(folder / "binary.txt")], output)
    assert not list(output.parent.glob("*"))
    (digits / "inputs.json").rename(digits / "gone.json")
    with pytest.raises(ConfigError, match="kept no inputs.json; give columns by name"):
        lsm.load(digits).predict(np.zeros((1, 8, 8, 1), np.uint8))
    (digits / "gone.json").rename(digits / "inputs.json")


def test_what_is_read_is_not_written_over(digits, pictures, tmp_path):
    folder, _ = pictures
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(ConfigError, match="out.csv is one of the files that are read"):
        lsm.predict_files(digits, str(tmp_path), str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"'a.txt' given; it has to end in .csv or .jsonl"):
        lsm.predict_files(digits, str(folder), str(tmp_path / "a.txt"))
    assert lsm.predict_files(digits, str(folder / "1.png"), str(tmp_path / "one.csv")) == 1


def test_an_unfit_line_is_named(verse, tmp_path):
    (tmp_path / "in.txt").write_text("to be\nto be or not to be\n")
    with pytest.raises(DataError, match=r"in.txt line 2: predict: a text of 18 characters"):
        lsm.predict_files(verse, str(tmp_path / "in.txt"), tmp_path / "o.jsonl")


class ByColour(nn.Module):
    """Logits of three kinds by a number and a colour, of which there are two."""

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3)(inputs["x"]) + nn.Embed(2, 3)(inputs["colour"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfColour(Classification):
    def inputs(self, batch):
        return {name: batch[name] for name in ("x", "colour")}

    check = Task.check


def test_rows_of_a_table_in_the_columns_and_numbers_of_the_run(tmp_path, caplog):
    new, out, own = tmp_path / "new.csv", tmp_path / "out.jsonl", tmp_path / "own"
    own.mkdir()
    rows = "".join(
        f"{i},{i % 3},{'oval' if i % 5 else 'flat'},{'red' if i % 2 else 'blue'},{'ab'[i % 2]}\n"
        for i in range(16)
    )
    (own / "train.csv").write_text("a,b,form,colour,kind\n" + rows)
    (own / "test.csv").write_text("a,b,form,colour,kind\n1,1,oval,red,b\n1,nan,flat,red,c\n")
    columns = {"x": ("a", "form", "b"), "colour": "colour", "kind": "kind"}
    files = Files(str(own), columns, labels=("colour", "kind", "form"))
    source = Split(files, {"train": 0.75, "more": 0.25}, stratify="kind")
    lsm.fit(experiment(OfColour(model=ByColour(), label="kind"), source), tmp_path / "run")
    assert "data.test: column 'kind' holds 'c', which data.train has no example of." in caplog.text
    line = f"data.test: column 'x' is not finite in 1 of 2 examples, the first is {own}/test.csv row 2."
    assert line in caplog.text

    run = lsm.load(tmp_path / "run")
    x = np.array([[0.25, 0, 1, 0.5], [4, 1, 0, -3], [0, 0, 1, np.nan]], np.float32)
    expected = run.predict({"x": x, "colour": ["red", "blue", "red"]})
    rows = [(0.25, "oval", 0.5), (4, "flat", -3), (0, "oval", np.nan)]
    for name, values in run.predict({"x": rows, "colour": ["red", "blue", "red"]}).items():
        np.testing.assert_array_equal(values, expected[name])
    assert "predict: column 'x' is not finite in 1 of 3 rows, the first is [2]." in caplog.text
    new.write_text("b,colour,a,form\n0.5,red,0.25,oval\n-3,blue,4,flat\nnan,red,0,oval\n")
    assert lsm.predict_files(tmp_path / "run", [str(new)], out) == 3
    assert f"column 'x' is not finite in 1 of 3 rows, the first is {new} row 3;" in caplog.text
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["class"] for row in found] == expected["class"].tolist()
    assert {row["class"] for row in found} <= {"a", "b", "c"} and found[1]["row"] == 2
    told = [row["probability"] for row in found[:2]]
    np.testing.assert_allclose(told, expected["probability"][:2], rtol=1e-6)

    for text, line in {
        "a,form,colour\n1,flat,red\n": "new.csv has no column 'b'; it has a, form, colour",
        "a,b,colour,form\n1,2,red,flat\n3,4,rde,oval\n": r"new.csv row 2: .*'rde', .*: blue, red. Did you mean 'red'",
        "a,b,colour,form\n1,2,red,flat\n3,4,red,ovale\n": r"row 2: .*'ovale', .*: flat, oval. Did you mean 'oval'",
        "a,b,colour,form\n1,2,red,flat\n3,tall,red,flat\n": "new.csv row 2: .* 'b' holds 'tall'; numbers are",
    }.items():
        new.write_text(text)
        with pytest.raises(DataError, match=line):
            lsm.predict_files(tmp_path / "run", [str(new)], tmp_path / "none.jsonl")


def test_other_data_and_other_outputs_are_said(tmp_path, caplog):
    rows = "".join(f"{i},{'abc'[i % 3]}\n" for i in range(24))
    (tmp_path / "own").mkdir()
    for name in ("train.csv", "test.csv"):
        (tmp_path / "own" / name).write_text("x,kind\n" + rows)
    source = Files(str(tmp_path / "own"), {"x": ("x",), "kind": "kind"}, labels=("kind",))
    task = Classification(model=MLP(widths=()), input="x", label="kind")
    lsm.fit(case := experiment(task, source), tmp_path / "run")
    assert "task.model.outputs: 10, and files" in caplog.text and "has 3 classes" in caplog.text
    lsm.evaluate_run(case, tmp_path / "run")
    assert "not the data of the run" not in caplog.text
    with pytest.raises(
        DataError, match="task.input: column 'kind' holds numbers of names, such as 'a'"
    ):
        Trainer.of(experiment(dataclasses.replace(task, input="kind"), source), None)
    (tmp_path / "own/test.csv").write_text("x,kind\n" + rows.replace("a", "d"))
    lsm.evaluate_run(case, tmp_path / "run")
    assert "this is not the data of the run: data.t" in caplog.text
