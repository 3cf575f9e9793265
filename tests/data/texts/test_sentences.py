"""Sentences of texts: where they end, what stands beside them, what cannot be read."""

import json

import numpy as np
import pytest

from lsm.data import Arrays, Files, Select, Sentences, Texts, Words
from lsm.data.texts.sentences import sentences
from lsm.errors import DataError

REVIEWS = ("Bad. Truly bad!", "<br /><br />", "Great fun. See it\nwith friends", "Fine")


def texts(*given):
    return np.array([*given, None], object)[:-1]


def source(given=REVIEWS):
    columns = {"text": texts(*given), "label": np.arange(len(given)) % 2}
    return Arrays(columns, test={"text": texts("No."), "label": np.array([1])}, classes=("n", "p"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two? Three! 4", ["One.", "Two?", "Three!", "4"]),
        ('He said "no." Then (yes!) so', ['He said "no."', "Then (yes!)", "so"]),
        ("3.5 stars... at most", ["3.5 stars...", "at most"]),
        ("a <br /><br/> b<br>\r\nc", ["a", "b", "c"]),
        ("很好看。真的！ 好？", ["很好看。", "真的！", "好？"]),
        ("!!! ... --", []),
        ("", []),
    ],
)
def test_where_they_end(text, expected):
    assert sentences(text) == expected


def test_each_is_an_example_beside_the_columns_of_its_text():
    made = Sentences(source())
    assert made.splits() == ("train", "test") and made.shards() == {"train": [6], "test": [1]}
    dataset = made.open("train+test")
    expected = ["Bad.", "Truly bad!", "Great fun.", "See it", "with friends", "Fine", "No."]
    labels = [0, 0, 0, 0, 0, 1, 1]
    order = np.array([6, 0, 3, 5, 1, 2, 4])
    taken = dataset.take(order)
    assert taken["text"].tolist() == [expected[n] for n in order]
    assert taken["label"].tolist() == [labels[n] for n in order]
    assert dataset.column("text").tolist() == expected
    assert dataset.column("label").tolist() == labels and dataset.classes == ("n", "p")
    assert dataset.resident() is None
    held = [*dataset.held()]
    assert all(set(part) == {"label"} for part in held)
    assert np.concatenate([part["label"] for part in held]).tolist() == labels
    assert made.open("train[2:4]").column("text").tolist() == ["Great fun.", "See it"]


def test_an_example_is_named_by_its_text(tmp_path):
    lines = [{"text": text, "label": 0} for text in REVIEWS]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    dataset = Sentences(Files(str(tmp_path / "train.jsonl"), columns=("text", "label"))).open(
        "train"
    )
    assert "row 3" in dataset.where(4)


def test_tokens_are_made_of_them_and_classes_taken():
    made = Texts(Select(Sentences(source()), ("p",)), Words(20), {"tokens": "text"}, length=4)
    dataset = made.open("train")
    assert dataset.take(np.arange(1))["tokens_length"].tolist() == [1]  # "Fine"
    whole = Texts(Sentences(source()), Words(20), {"tokens": "text"}, length=4).open("train")
    assert whole.take(np.arange(6))["tokens_length"].tolist() == [2, 3, 3, 2, 2, 1]


def test_what_cannot_be_read_is_one_line():
    with pytest.raises(DataError, match="Sentences.column: Arrays.* has no column 'txt'; .*'text'"):
        Sentences(source(), "txt").open("train")
    with pytest.raises(DataError, match="column 'text' of split 'train' holds no words"):
        Sentences(source(("...", "<br />"))).open("train")
    with pytest.raises(DataError, match="column 'label'"):
        Sentences(source(), "label").open("train")
