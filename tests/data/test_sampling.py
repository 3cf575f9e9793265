"""Poisson batches: the law of the draws, the weights, the room that they need."""

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats

from lsm.config import schema
from lsm.config.flags import override
from lsm.data import ArrayDataset, Data, Digits, Poisson, RandomCrop, Shuffled, TrainBatches
from lsm.errors import ConfigError


def numbered(examples, **columns):
    image = np.random.default_rng(0).integers(0, 256, (examples, 8, 8, 3)).astype(np.uint8)
    number = np.arange(examples, dtype=np.int32)
    return ArrayDataset({"image": image, "number": number} | columns)


def chosen(expected, examples, steps, seed=0):
    """Returns (steps, examples) bool: which example is in which batch."""
    drawn = np.zeros((steps, examples), bool)
    for step in range(steps):
        indices, weight = Poisson(expected).draw(seed, step, examples, examples)
        drawn[step, indices[weight > 0]] = True
    return drawn


@pytest.mark.parametrize("expected", [3, 2.5, 1e-3, 999.75, 1000])
def test_a_draw_is_the_philox_numbers_below_the_threshold(expected):
    q = Fraction(expected) / 1000
    for step in range(3):
        raw = np.random.Philox(np.random.SeedSequence((7, 2, step))).random_raw(1000).tolist()
        want = [i for i, number in enumerate(raw) if number < q * 2**64]
        indices, weight = Poisson(expected).draw(7, step, 1000, 1000)
        assert indices[: len(want)].tolist() == want
        assert weight.tolist() == [1] * len(want) + [0] * (1000 - len(want))
        assert (indices.dtype, weight.dtype) == (np.int64, np.float32)


def test_draws_never_change():
    # Recorded once; another NumPy, machine or version of lsm must give the same batches.
    drawn = [Poisson(2.5).draw(0, step, 10, 6) for step in range(3)]
    assert [d[0].tolist() for d in drawn] == [
        [3, 4, 6, 7, 8, 8],
        [0, 4, 4, 4, 4, 4],
        [0, 3, 6, 7, 7, 7],
    ]
    assert [d[1].sum() for d in drawn] == [5, 2, 4]


def test_the_sizes_of_batches_are_binomial():
    """Chi-square, fixed seed: a wrong q, or any dependence, would show."""
    examples, expected, steps = 40, 6, 4000
    sizes = chosen(expected, examples, steps).sum(1)
    law = scipy.stats.binom(examples, expected / examples)
    edges = np.arange(1, 13)  # 12 classes "exactly k", and the two tails
    counts = [(sizes < 1).sum(), *((sizes == k).sum() for k in edges), (sizes > 12).sum()]
    chances = [law.cdf(0), *law.pmf(edges), law.sf(12)]
    assert scipy.stats.chisquare(counts, np.array(chances) * steps).pvalue > 0.01


def test_every_example_is_drawn_alike_and_independently():
    examples, expected, steps = 40, 6, 4000
    drawn, q = chosen(expected, examples, steps, seed=1), 0.15
    z = (drawn.sum(0) - steps * q) / math.sqrt(steps * q * (1 - q))
    assert np.abs(z).max() < 4
    assert scipy.stats.chi2(examples).sf((z**2).sum()) > 0.01
    for a, b in itertools.combinations(range(examples), 2):
        both = (drawn[:, a] & drawn[:, b]).sum()  # within a batch
        after = (drawn[:-1, a] & drawn[1:, b]).sum()  # in one batch and the next
        for count in (both, after):
            assert abs(count - steps * q**2) < 5 * math.sqrt(steps * q**2 * (1 - q**2))


def test_seeds_and_steps_differ():
    first = chosen(6, 40, 50)
    assert not np.array_equal(first, chosen(6, 40, 50, seed=1))
    assert len({row.tobytes() for row in first}) == 50


def test_batches_are_filled_up_with_weight_0():
    batches = TrainBatches(numbered(100), 24, seed=3, sampling=Poisson(4))
    sizes = []
    for step in range(300):
        batch = batches.batch_at(step)
        assert batch["image"].shape == (24, 8, 8, 3)
        assert (batch["weight"].shape, batch["weight"].dtype) == ((24,), np.float32)
        size = int(batch["weight"].sum())
        numbers = batch["number"].tolist()
        assert batch["weight"].tolist() == [1] * size + [0] * (24 - size)
        assert numbers[:size] == sorted(set(numbers[:size]))
        assert set(numbers[size:]) <= {numbers[size - 1] if size else 0}
        sizes.append(size)
    assert 0 in sizes  # (1 - 0.04)^100 = 1.7 % of the draws
    assert np.mean(sizes) == pytest.approx(4, abs=3 * 2 / math.sqrt(300))


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 22, 23], [5]])
@pytest.mark.parametrize("weight", [None, (60,), (60, 3)], ids=str)
def test_rows_are_those_of_the_whole_batch(rows, weight):
    random = np.random.default_rng(1)
    own = {"weight": random.random(weight, np.float32) + 1} if weight else {}
    dataset = numbered(60, **own)
    whole = TrainBatches(dataset, 24, seed=5, augment=(RandomCrop(3),), sampling=Poisson(4))
    part = dataclasses.replace(whole, rows=np.array(rows))
    for step in range(8):
        batch, share = whole.batch_at(step), part.batch_at(step)
        for name, column in batch.items():
            np.testing.assert_array_equal(share[name], column[rows])
        _, real = Poisson(4).draw(5, step, 60, 24)
        if own:
            real = (own["weight"][batch["number"]].T * real).T
        np.testing.assert_array_equal(batch["weight"], real)


def test_a_process_reads_its_rows_only():
    taken = []

    class Watched(ArrayDataset):
        def take(self, indices):
            taken.append(len(indices))
            return super().take(indices)

    batches = TrainBatches(
        Watched(numbered(60).columns), 24, rows=np.arange(6), sampling=Poisson(4)
    )
    batches.batch_at(0)
    assert taken == [6]


@pytest.mark.parametrize("examples", [10, 100, 10_000, 1_000_000])
@pytest.mark.parametrize("expected", [1e-3, 1, 7.5, 64, 5000])
def test_the_capacity_is_exceeded_as_rarely_as_it_says(examples, expected):
    if expected > examples:
        pytest.skip("there are not so many")
    rows = Poisson(expected).capacity(examples)
    law = scipy.stats.binom(examples, expected / examples)
    assert law.sf(rows) < math.exp(-18)
    assert rows == examples or rows >= law.mean() + 6 * law.std()
    assert rows <= law.mean() + 6 * law.std() + 14  # and no wider than it must be


def test_a_batch_without_room_is_one_line():
    batches = TrainBatches(numbered(100), 30, sampling=Poisson(7))
    with pytest.raises(ConfigError, match=r"batch_size: 30 .* of 8 out of 100 .* needs 32 or more"):
        dataclasses.replace(batches, sampling=Poisson(8))
    dataclasses.replace(batches, batch_size=32, sampling=Poisson(8))
    with pytest.raises(ConfigError, match=r"Poisson\.expected: 101 given; allowed: at most 100,"):
        dataclasses.replace(batches, batch_size=100, sampling=Poisson(101))
    with pytest.raises(ConfigError, match=r"Poisson\.expected: 0 given; .*\(0, inf\)"):
        Poisson(0)


def test_a_draw_that_does_not_fit_stops_the_run():
    sizes = chosen(4, 100, 20).sum(1)
    large = int(np.argmax(sizes > 5))
    with pytest.raises(
        ConfigError, match=rf"batch_size: 5 given, .* drew {sizes[large]} .* step {large + 1};"
    ):
        Poisson(4).draw(0, large, 100, 5)


def test_all_examples_can_be_expected():
    batch = TrainBatches(numbered(9), 9, sampling=Poisson(9)).batch_at(4)
    assert batch["number"].tolist() == list(range(9))
    assert batch["weight"].tolist() == [1] * 9


def test_the_mean_counts_epochs():
    assert Shuffled().mean(32) == 32
    assert Poisson(12.5).mean(32) == 12.5


def test_sampling_can_be_overridden_and_told():
    data = Data(source=Digits(), sampling=Poisson(5))
    schema.check(data)
    changed = override(data, {"sampling.expected": "6.5"})
    assert changed.sampling == Poisson(6.5)
    told = schema.to_json(changed)["sampling"]
    assert told == {"class": "lsm.data.sampling.Poisson", "expected": 6.5}
    assert Data(source=Digits()).sampling == Shuffled()
