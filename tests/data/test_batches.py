import dataclasses
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm.config import schema
from lsm.data import (
    ArrayDataset,
    Arrays,
    CharText,
    Data,
    Digits,
    EvalBatches,
    RandomCrop,
    RandomFlip,
    TrainBatches,
)
from lsm.data.sampling import permutation
from lsm.errors import ConfigError


def numbered(examples: int) -> ArrayDataset:
    image = np.random.default_rng(0).integers(0, 256, (examples, 8, 8, 3)).astype(np.uint8)
    return ArrayDataset({"image": image, "number": np.arange(examples, dtype=np.int32)})


def numbers(batches: TrainBatches, steps: range) -> list[int]:
    return [n for step in steps for n in batches.batch_at(step)["number"].tolist()]


def test_batches_never_change():
    # Recorded once, order and augmentation; see `test_orders_never_change`.
    augment = (RandomCrop(3), RandomFlip())
    batch = TrainBatches(numbered(30), 8, seed=5, augment=augment).batch_at(3)
    assert batch["number"].tolist() == [0, 8, 21, 28, 2, 26, 4, 3]
    assert zlib.crc32(batch["image"].tobytes()) == 3587440507
    assert list(batch) == ["image", "number"]


def test_every_epoch_holds_every_example_once_across_straddling_batches():
    batches = TrainBatches(numbered(10), batch_size=4, seed=3)
    line = numbers(batches, range(10))  # 40 places: 4 epochs of 10
    epochs = [line[start : start + 10] for start in range(0, 40, 10)]
    for number, epoch in enumerate(epochs):
        assert epoch == permutation(3, 10, np.full(10, number), np.arange(10)).tolist()
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_may_be_larger_than_the_dataset():
    batches = TrainBatches(numbered(3), batch_size=8)
    line = numbers(batches, range(3))
    assert [sorted(line[i : i + 3]) for i in range(0, 24, 3)] == [[0, 1, 2]] * 8


def test_batches_do_not_depend_on_the_order_of_asking():
    augment = (RandomFlip(), RandomCrop(2))
    ahead = TrainBatches(numbered(20), 8, seed=1, augment=augment)
    expected = {step: ahead.batch_at(step) for step in range(6)}
    again = TrainBatches(numbered(20), 8, seed=1, augment=augment)
    for step in (5, 0, 3, 3, 1):
        for name, column in again.batch_at(step).items():
            np.testing.assert_array_equal(column, expected[step][name])


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 6, 7], [5]])
def test_rows_are_those_of_the_whole_batch(rows):
    """What a process reads does not depend on how many processes there are."""
    whole = TrainBatches(numbered(30), 8, seed=5, augment=(RandomCrop(3), RandomFlip()))
    part = dataclasses.replace(whole, rows=np.array(rows))
    for step in range(8):  # steps 3 and 7 straddle epochs
        share = part.batch_at(step)
        for name, column in whole.batch_at(step).items():
            np.testing.assert_array_equal(share[name], column[rows])


def test_seeds_and_steps_differ_in_order_and_augmentation():
    one = ArrayDataset(
        {"image": np.tile(np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1), (64, 1, 1, 1))}
    )
    batches = TrainBatches(one, 64, seed=0, augment=(RandomCrop(3),))
    first = batches.batch_at(0)["image"]
    assert not np.array_equal(first, batches.batch_at(1)["image"])
    assert not np.array_equal(first, dataclasses.replace(batches, seed=1).batch_at(0)["image"])
    plain = TrainBatches(numbered(64), 64, seed=0)
    other = dataclasses.replace(plain, seed=1)
    assert numbers(plain, range(1)) != numbers(other, range(1))


def test_augmentation_leaves_the_dataset_alone():
    dataset = numbered(8)
    before = dataset.columns["image"].copy()
    TrainBatches(dataset, 8, augment=(RandomFlip(1.0), RandomCrop(2))).batch_at(0)
    np.testing.assert_array_equal(dataset.columns["image"], before)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("examples", [1, 7, 8, 9, 16])
def test_evaluation_counts_every_example_once(examples, processes):
    counted = np.zeros(examples)
    for rows in np.arange(8).reshape(processes, -1):
        batches = EvalBatches(numbered(examples), 8, rows)
        assert len(batches) == -(-examples // 8)
        for number in range(len(batches)):
            batch = batches.batch_at(number)
            assert batch["image"].shape == (8 // processes, 8, 8, 3)
            assert batch["weight"].shape == (8 // processes,)
            assert batch["weight"].dtype == np.float32
            np.add.at(counted, batch["number"], batch["weight"])
    np.testing.assert_array_equal(counted, np.ones(examples))


def test_evaluation_goes_in_order_and_ends():
    batches = EvalBatches(numbered(5), 4)
    assert batches.batch_at(0)["number"].tolist() == [0, 1, 2, 3]
    last = batches.batch_at(1)
    assert last["number"].tolist() == [4, 4, 4, 4]
    assert last["weight"].tolist() == [1, 0, 0, 0]
    with pytest.raises(IndexError):
        batches.batch_at(2)


def test_evaluation_multiplies_weights_of_the_dataset():
    own = np.array([[0.5, 2.0], [1.0, 0.0], [3.0, 1.0]], np.float32)
    batches = EvalBatches(ArrayDataset({"weight": own}), 2)
    np.testing.assert_array_equal(batches.batch_at(0)["weight"], own[:2])
    np.testing.assert_array_equal(batches.batch_at(1)["weight"], [[3, 1], [0, 0]])


@pytest.mark.parametrize("kind", [TrainBatches, EvalBatches])
def test_a_batch_of_nothing_is_an_error(kind):
    with pytest.raises(ConfigError, match="batch_size: 0 must be above 0"):
        kind(numbered(8), 0)


def test_settings_out_of_range_are_errors():
    with pytest.raises(ConfigError, match="seed: -1 is negative"):
        TrainBatches(numbered(8), 4, seed=-1)
    with pytest.raises(
        ConfigError, match=r"Data.workers: 0 given; allowed: a number in \[1, 1024\]"
    ):
        Data(Digits(), workers=0)


SIZES = st.integers(1, 40)


@given(SIZES, st.integers(1, 60), st.integers(0, 2**32 - 1), st.integers(0, 10**9), st.data())
def test_any_share_of_any_batch(examples, batch_size, seed, step, data):
    augment = (RandomFlip(), RandomCrop(2))
    whole = TrainBatches(numbered(examples), batch_size, seed, augment)
    batch = whole.batch_at(step)
    # Cut at any places, by as many processes: joined, it is the batch.
    cuts = data.draw(st.lists(st.integers(0, batch_size), max_size=3).map(sorted))
    bounds = zip([0, *cuts], [*cuts, batch_size], strict=True)
    parts = [
        dataclasses.replace(whole, rows=np.arange(start, stop)).batch_at(step)
        for start, stop in bounds
    ]
    for name, column in batch.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), column)
    # A window of the endless line of epochs: the epochs in it are whole permutations.
    place = step * batch_size
    line = batch["number"].tolist()
    ahead = -place % examples
    for start in range(ahead, batch_size - examples + 1, examples):
        assert sorted(line[start : start + examples]) == list(range(examples))
    assert len(set(line[:ahead])) == len(line[:ahead])


@given(SIZES, st.integers(1, 60), st.integers(1, 4))
def test_any_evaluation_counts_every_example_once(examples, batch_size, processes):
    rows = np.array_split(np.arange(batch_size), processes)
    shares = [EvalBatches(numbered(examples), batch_size, rows=share) for share in rows]
    counted = np.zeros(examples)
    for number in range(len(shares[0])):
        for share in shares:
            batch = share.batch_at(number)
            np.add.at(counted, batch["number"], batch["weight"])
    np.testing.assert_array_equal(counted, 1)


def test_the_test_split_is_what_the_source_has():
    alone = Arrays({"text": np.array(["ab"])})
    both = dataclasses.replace(alone, test={"text": np.array(["ab"])})
    assert Data(alone).settled().test is None
    assert Data(CharText(alone, 1)).settled().test is None
    assert Data(both).settled() == Data(both, test="test")
    assert Data(alone, test="test").settled().test == "test"  # asked for: opening it will fail
    assert Data(alone, test=None).settled().test is None
    # A config that was saved when the default was plain "test" is the same one.
    assert schema.to_json(Data(Digits())) == schema.to_json(Data(Digits(), test="test"))
    assert schema.from_json(schema.to_json(Data(Digits()))) == Data(Digits())
