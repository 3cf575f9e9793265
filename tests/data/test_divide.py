"""Splits by fraction, class, group and column: every example once, the same for the same seed."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lsm.data import Arrays, Files, Split, SplitBy
from lsm.errors import ConfigError, DataError

THREE = {"train": 0.7, "validation": 0.1, "test": 0.2}


def source(kinds, **columns) -> Arrays:
    kinds = np.asarray(kinds, np.int32)
    return Arrays({"number": np.arange(len(kinds)), "kind": kinds} | columns)


def numbers(split) -> dict[str, list[int]]:
    """The examples of each new split, all of which are in one."""
    dataset = split.source.open(split.of)
    found = {name: numbers.tolist() for name, numbers in split.parts(dataset).items()}
    assert sorted(number for some in found.values() for number in some) == [*range(len(dataset))]
    return found


@given(st.integers(30, 200), st.integers(0, 2**32 - 1))
def test_every_example_is_in_one_split(examples, seed):
    split = Split(source(np.zeros(examples)), THREE, seed=seed)
    found = numbers(split)
    for name, share in THREE.items():
        assert abs(len(found[name]) - share * examples) < 1
        assert found[name] == sorted(found[name])


@given(st.lists(st.integers(0, 5), min_size=40, max_size=120), st.integers(0, 100))
def test_every_class_has_its_fraction(kinds, seed):
    assume(2 * sum(kinds.count(kind) == 1 for kind in {*kinds}) <= len({*kinds}))
    found = numbers(Split(source(kinds), THREE, seed=seed, stratify="kind"))
    kinds = np.array(kinds)
    for name, share in THREE.items():
        counts = np.bincount(kinds[found[name]], minlength=6)
        assert (abs(counts - share * np.bincount(kinds, minlength=6)) < 1).all()


@given(st.lists(st.integers(0, 40), min_size=100, max_size=200), st.integers(0, 100))
def test_no_group_is_in_two_splits(groups, seed):
    found = numbers(Split(source(groups), THREE, seed=seed, group="kind"))
    groups = np.array(groups)
    of = [set(groups[found[name]].tolist()) for name in THREE]
    assert sum(map(len, of)) == len(set(groups.tolist()))
    largest = np.bincount(groups).max()
    for name, share in THREE.items():
        assert abs(len(found[name]) - share * len(groups)) <= largest


def test_counts_are_those_of_scikit_learn():
    from sklearn.model_selection import StratifiedShuffleSplit

    kinds = np.repeat(np.arange(4), [10, 20, 30, 140])
    ours = numbers(Split(source(kinds), {"train": 0.8, "test": 0.2}, stratify="kind"))
    ((_, theirs),) = StratifiedShuffleSplit(1, test_size=0.2, random_state=0).split(kinds, kinds)
    np.testing.assert_array_equal(np.bincount(kinds[ours["test"]]), np.bincount(kinds[theirs]))


def test_a_seed_is_a_draw_and_a_draw_is_forever():
    kinds = np.zeros(40)
    first = numbers(Split(source(kinds), THREE, seed=7))
    assert first == numbers(Split(source(kinds), THREE, seed=7))
    others = [numbers(Split(source(kinds), THREE, seed=seed))["test"] for seed in range(20)]
    assert len(set(map(tuple, others))) == 20
    # Each place is drawn about as often as another: 20 % of 20 seeds, give or take.
    assert np.bincount(np.concatenate(others), minlength=40).max() < 12
    # A result compares only while the split is what it was: that of Philox's raw numbers.
    order = np.argsort(np.random.Philox(key=7).random_raw(40), kind="stable")
    assert first["validation"] == sorted(order[28:32].tolist())


def test_classes_of_two_examples_do_not_all_go_one_way():
    """Each class alone would round to "train"; what is owed is carried on to the next."""
    found = numbers(Split(source(np.arange(40) // 2), {"train": 0.8, "test": 0.2}, stratify="kind"))
    assert len(found["test"]) == 8


def test_other_splits_stay_and_slices_work():
    whole = dataclasses.replace(
        source(np.zeros(20)), test={"number": np.arange(5), "kind": np.zeros(5, np.int32)}
    )
    split = Split(whole, {"fit": 0.5, "validation": 0.5})
    assert split.splits() == ("fit", "validation", "test")
    assert split.shards() == {"fit": [10], "validation": [10], "test": [5]}
    assert len(split.open("test")) == 5 and len(split.open("fit[:50%]+test")) == 10
    with pytest.raises(DataError, match="has no split 'train'; it has fit, validation, test"):
        split.open("train")
    every = Split(whole, {"train": 0.6, "test": 0.4}, of="all")
    assert every.shards() == {"train": [15], "test": [10]}


def test_a_column_names_the_splits(tmp_path):
    (tmp_path / "a.csv").write_text("x,part,patient\n1,train,a\n2,test,b\n3,train,b\n4,dev,c\n")
    files = Files(str(tmp_path / "a.csv"), columns=("x",))
    split = SplitBy(files, "part")  # a column that is not delivered
    assert {name: split.open(name).column("x").tolist() for name in split.splits()} == {
        "dev": [4], "test": [2], "train": [1, 3],
    }  # fmt: skip
    assert set(split.open("train").spec) == {"x"}
    folds = SplitBy(source([0, 1, 2, 1, 0]), "kind")
    assert folds.open("0+1").column("number").tolist() == [0, 4, 1, 3]
    grouped = Split(files, {"train": 0.5, "test": 0.5}, group="patient", seed=1)
    parts = [set(grouped.open(name).column("patient")) for name in ("train", "test")]
    assert not parts[0] & parts[1]


def test_what_is_chosen_is_held_and_resident_like_the_rest():
    split = Split(source(np.arange(50) % 3), {"train": 0.5, "test": 0.5}, seed=3)
    dataset = split.open("test")
    expected = dataset.take(np.arange(25))
    (held,) = dataset.held()
    columns, read = dataset.resident()
    on_device = jax.jit(read)(columns, np.arange(25))
    for name, column in expected.items():
        np.testing.assert_array_equal(held[name], column)
        np.testing.assert_array_equal(on_device[name], column)
    halves = dict(split.open("train").identity, chosen=None), dict(dataset.identity, chosen=None)
    assert halves[0] == halves[1] and split.open("train").identity != dataset.identity
    part = split.open("test[:10]+train[:5]")
    assert [len(next(iter(x.values()))) for x in part.held()] in ([], [10, 5])


def test_errors():
    some = source(np.zeros(4))
    with pytest.raises(ConfigError, match=r"Split.fractions: .* numbers above 0 that add up to 1"):
        Split(some, {"train": 0.8, "test": 0.1})
    with pytest.raises(ConfigError, match=r"Split.fractions: 'a b' is no name of a split"):
        Split(some, {"train": 0.5, "a b": 0.5})
    with pytest.raises(ConfigError, match="stratify and group given; allowed: one of them"):
        Split(some, {"a": 1.0}, stratify="kind", group="kind")
    with pytest.raises(ConfigError, match="Split.seed: -1 is negative"):
        Split(some, {"a": 1.0}, seed=-1)
    with pytest.raises(DataError, match=r"Arrays\(.*\), split: there is no column 'knd'.* 'kind'"):
        Split(some, {"a": 1.0}, group="knd").open("a")
    few = source([0, 1, 2, 2])
    with pytest.raises(DataError, match="stratify: 2 of the 3 values of column 'kind' have one ex"):
        Split(few, {"train": 0.5, "test": 0.5}, stratify="kind").open("train")
    with pytest.raises(DataError, match="split: split 'test' gets none of 4 examples"):
        Split(some, {"train": 0.9, "test": 0.1}).open("train")
    with pytest.raises(DataError, match="column 'x' holds '0.5', '1.5'; names of splits are"):
        SplitBy(Arrays({"x": np.array([0.5, 1.5])}), "x").open("a")


def test_a_division_of_a_division_is_resident():
    once = Split(source(np.arange(50) % 3), {"train": 0.8, "test": 0.2})
    twice = Split(once, {"train": 0.5, "validation": 0.5}).open("train")
    columns, read = twice.resident()
    on_device = jax.jit(read)(columns, np.arange(len(twice)))
    for name, column in twice.take(np.arange(len(twice))).items():
        np.testing.assert_array_equal(on_device[name], column)
