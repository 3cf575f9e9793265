"""Classes that are taken of a source: which examples, how many, under which numbers."""

import re

import jax
import numpy as np
import pytest

from lsm.data import Arrays, Files, Select
from lsm.errors import ConfigError, DataError

NAMES = ("bird", "cat", "dog", "frog")


def source(classes=NAMES):
    def split(count):
        number = np.arange(count, dtype=np.int32)
        return {"number": number, "label": number % 4}

    return Arrays(split(40), test=split(20), classes=classes)


def test_labels_number_the_classes_in_the_order_given():
    chosen = Select(source(), ("dog", "bird"), {"train": 3}, seed=1)
    assert chosen.splits() == ("train", "test")
    assert chosen.shards() == {"train": [6], "test": [10]}
    for name, each in (("train", 3), ("test", 5)):
        dataset = chosen.open(name)
        batch = dataset.take(np.arange(len(dataset)))
        number, label = batch["number"], batch["label"]
        assert dataset.classes == ("dog", "bird") and (np.diff(number) > 0).all()
        np.testing.assert_array_equal(label, np.where(number % 4 == 2, 0, 1))
        assert np.bincount(label).tolist() == [each, each] and label.dtype == np.int32
        # All forms of the same examples.
        (held,) = dataset.held()
        columns, read = dataset.resident()
        found = [held, jax.jit(read)(columns, np.arange(len(dataset)))]
        found += [dataset.by_example().take(np.arange(len(dataset)))]
        found += [{key: dataset.column(key) for key in batch}]
        for form in found:
            jax.tree.map(np.testing.assert_array_equal, dict(form), batch)
    assert chosen.open("train[:4]+test").take(np.array([0, 4]))["number"].tolist()[1] == 0


def test_the_draw_is_a_function_of_the_seed():
    def drawn(seed, classes=("cat", "dog")):
        dataset = Select(source(), classes, {"train": 5}, seed=seed).open("train")
        return dataset.column("number").tolist(), dataset.identity

    assert drawn(3) == drawn(3)
    assert len({tuple(drawn(seed)[0]) for seed in range(9)}) == 9
    # Another order numbers the same examples otherwise: other data.
    assert drawn(3)[0] == drawn(3, ("dog", "cat"))[0]
    assert drawn(3)[1] != drawn(3, ("dog", "cat"))[1]
    # That of Philox's raw numbers, forever.
    raw = np.random.Philox(key=3).random_raw(40)
    cats = np.arange(1, 40, 4)
    assert set(cats[np.argsort(raw[cats])][:5]) <= set(drawn(3)[0])


def test_of_several_columns_with_names_one_is_chosen_by(tmp_path):
    (tmp_path / "a.csv").write_text("x,kind,colour\n1,b,red\n2,a,red\n3,c,blue\n4,b,blue\n")
    files = Files(str(tmp_path / "a.csv"), labels=("kind", "colour"))
    dataset = Select(files, ("c", "b"), label="kind").open("train")
    assert dataset.column("kind").tolist() == [1, 0, 1]
    assert dataset.names == {"kind": ("c", "b"), "colour": ("blue", "red")}


def test_errors():
    for classes in (("cat", "cat"), "cat", (0, 1), ()):
        with pytest.raises(ConfigError, match=f"Select.classes: {re.escape(repr(classes))} given"):
            Select(source(), classes)
    for counts in ({"train": 0}, {"train": 0.5}, 5):
        with pytest.raises(
            ConfigError, match=f"per_class: {re.escape(repr(counts))} given; a whole"
        ):
            Select(source(), ("cat",), counts)
    with pytest.raises(DataError, match=r"has no class 'cart'; it has bird, .*Did you mean 'cat'"):
        Select(source(), ("cart",)).open("train")
    with pytest.raises(DataError, match="has no class 'cat'; it has none with a name"):
        Select(source(None), ("cat",)).open("train")
    with pytest.raises(DataError, match=r"11 of 'cat' wanted; split 'train' of .* has 10"):
        Select(source(), ("cat",), {"train": 11}).open("train")
    with pytest.raises(DataError, match=r"has no split 'tain'; it has train, test\..*'train'"):
        Select(source(), ("cat",), {"tain": 1}).open("train")
