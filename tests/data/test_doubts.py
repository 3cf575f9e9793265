"""What is told of examples: words among numbers, what is not finite, classes that are not learnt."""

import numpy as np
import pytest

from lsm.data import Arrays, Files, Split, doubts
from lsm.data.values import first_word, not_finite

pytest.importorskip("pyarrow")


def test_the_first_word_is_none_of_the_texts_that_are_numbers():
    numbers = ["1", "-2.5", " 3 ", "1e5", ".5", "4.", "-1E-3", "nan", "inf", "-inf"]
    assert first_word(numbers) is None
    for word in ("unknown", "1,5", "1_000", "+1", "12 cm", "-", ".", "", "2024-01-02", "true"):
        assert first_word([*numbers, word, "x"]) == len(numbers), word


def test_rows_that_are_not_finite():
    x_NxK = np.zeros((2_000_000, 3), np.float32)  # more than are looked at together
    x_NxK[[5, 1_999_999], [2, 0]] = np.nan, np.inf
    found = not_finite({"x": x_NxK, "n": np.arange(3), "y": np.zeros(2), "none": np.zeros((0, 2))})
    assert list(found) == ["x"] and found["x"].tolist() == [5, 1_999_999]


@pytest.fixture
def files(tmp_path):
    """Two files of a split and another: rows are told by their file, whatever is made of them."""
    (tmp_path / "train-0.csv").write_text("x,age,y\n1,1,b\n2,2,a\n")
    (tmp_path / "train-1.csv").write_text("x,age,y\nnan,3,b\n-inf,many,a\n")
    (tmp_path / "test.csv").write_text("x,age,y\n1,none,c\n2,2,b\n3,2,d\n")
    return Files(str(tmp_path), {"x": "x", "y": "y"}, labels=("y",)), tmp_path


def test_what_is_not_finite_is_told_by_file_and_row(files):
    source, path = files
    row = f"the first is {path}/train-1.csv row"
    expected = {
        "train": f"column 'x' is not finite in 2 of 4 examples, {row} 1",
        "train[3:]": f"column 'x' is not finite in 1 of 1 examples, {row} 2",
        "test+train": f"column 'x' is not finite in 2 of 7 examples, {row} 1",
    }
    for split, line in expected.items():
        assert list(doubts.of_values(source.open(split))) == [("x", line)]
    one = Split(source, {"a": 0.5, "b": 0.5}).open("a")
    at = int(np.flatnonzero(~np.isfinite(one.column("x")))[0])
    ((_, line),) = doubts.of_values(one)
    assert line.endswith(one.where(at)) and "train-1" in one.where(at)
    assert not list(doubts.of_values(source.open("test")))


def test_classes_of_another_split_that_train_has_not(files):
    source, _ = files
    train, test = source.open("train"), source.open("test")
    assert list(doubts.of_classes(["x", "y"], train, test)) == [
        "column 'y' holds 'c', 'd', which data.train has no example of"
    ]
    assert not list(doubts.of_classes(["y"], test, source.open("test[:2]")))
    numbers = Arrays({"y": np.array([0, 1])}, test={"y": np.array([1, 7])})
    (line,) = doubts.of_classes(["y"], numbers.open("train"), numbers.open("test"))
    assert line == "column 'y' holds 7, which data.train has no example of"


def test_the_word_that_makes_a_column_text(files):
    _, path = files
    table = Files(f"{path}/train-1.csv").open("train")
    word = "column 'age' is text: {} holds 'many'"
    assert doubts.text(table, "age") == word.format(f"{path}/train-1.csv row 2")
    assert doubts.text(table, "y") is not None and doubts.text(table, "x") is None


def test_names_of_several_columns(tmp_path):
    (tmp_path / "a.csv").write_text("y,n,k\nb,3,9\na,2,8\n")
    dataset = Files(str(tmp_path / "a.csv"), labels=("y", "n")).open("train")
    assert dataset.names == {"y": ("a", "b"), "n": ("2", "3")} and dataset.classes is None
    assert dataset.rows(0, 1).names == dataset.names
