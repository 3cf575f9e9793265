"""Orders of epochs: exact, uniform, in little memory. Poisson batches: their law, weights, room."""

import dataclasses
import itertools
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats

from lsm.config import schema
from lsm.config.flags import override
from lsm.data import ArrayDataset, Data, Digits, Poisson, RandomCrop, Shuffled, TrainBatches
from lsm.data.sampling import permutation
from lsm.errors import ConfigError

# ------------------------------------------------------------------- orders of epochs

HUGE = [10**12, 2**61 - 1, 2**62, 2**62 + 1, 2**63 - 1]
CHANCE = 1e-3  # p-values below it fail; at fixed seeds, in about 30 tests


def at(seed, epoch, examples, places):
    return permutation(seed, examples, np.full(len(places), epoch), places)


def orders(seed, epochs, examples):
    """Returns (epochs, examples) int64."""
    line = np.divmod(np.arange(epochs * examples), examples)
    return permutation(seed, examples, *line).reshape(epochs, examples)


def many_orders(examples, number, by):
    if by == "epochs":
        return orders(0, number, examples)
    return np.concatenate([orders(seed, 1, examples) for seed in range(number)])


def plain(seed, epoch, examples, place):
    """One place of an order, in Python's integers."""
    root = math.isqrt(examples - 1) + 1  # rounded up
    rows = root if root % 2 == 0 else root + 1
    columns = max(2, math.ceil(Fraction(examples, rows)))
    rounds = next(r for r in (8, 12, 16, 24, 32) if columns**r >= 2**32)
    philox = np.random.Philox(np.random.SeedSequence((seed, 0))).advance(epoch * rounds // 4)
    keys = philox.random_raw(rounds).tolist()
    while True:
        row, column = divmod(place, columns)
        for number, key in enumerate(keys):
            fixed, side = (row, columns) if number % 2 else (column, rows)
            mixed = (fixed ^ key) * 0xBF58476D1CE4E5B9 % 2**64
            mixed = (mixed ^ mixed >> 32) * 0x94D049BB133111EB % 2**64
            shift = (mixed >> 32) * side >> 32
            if number % 2:
                column = (column + shift) % columns
            else:
                row = (row + shift) % rows
        place = row * columns + column
        if place < examples:
            return place


@pytest.mark.parametrize("examples", [1, 2, 3, 5, 16, 17, 1797, 10_000_000, *HUGE])
def test_an_order_is_a_feistel_network_with_cycle_walking(examples):
    places = [i * (examples - 1) // 59 for i in range(60)]
    for seed, epoch in ((0, 0), (7, 3), (2**70, 2**40)):
        found = at(seed, epoch, examples, np.array(places))
        assert found.tolist() == [plain(seed, epoch, examples, place) for place in places]
        assert found.dtype == np.int64


def test_orders_never_change():
    # Recorded once; another NumPy, machine or version of lsm must give the same batches.
    assert orders(0, 2, 10).tolist() == [
        [6, 2, 3, 1, 9, 0, 5, 4, 7, 8],
        [9, 7, 1, 6, 2, 0, 4, 5, 3, 8],
    ]
    assert at(5, 2, 10**7, np.arange(4)).tolist() == [4600651, 1737246, 7204029, 3569291]
    huge = [981822107672, 604905242256, 860859922082, 783394301736]
    assert at(5, 2, 10**12, np.arange(4)).tolist() == huge


@pytest.mark.parametrize(
    "sizes",
    [range(1, 70), (127, 128, 129, 1437, 1797), (4095, 4096, 4097), (2**18 - 1, 2**18, 2**18 + 1)],
    ids=str,
)
def test_every_epoch_holds_every_example_once(sizes):
    for examples in sizes:
        for epoch in np.sort(orders(1, 3, examples)):
            np.testing.assert_array_equal(epoch, np.arange(examples))


@pytest.mark.parametrize("examples", HUGE)
def test_no_example_is_twice_among_many_of_a_huge_set(examples):
    places = np.append(np.arange(20_000), examples - 1 - np.arange(20_000))
    found = at(2, 0, examples, places)
    assert found.min() >= 0 and found.max() < examples
    assert len(np.unique(found)) == 40_000


@pytest.mark.parametrize("examples", [1, 3, 100, 4096, 9001])
def test_batches_are_slices_of_the_line_of_epochs(examples):
    line = orders(4, math.ceil(20_000 / examples), examples).ravel()
    for size in (1, 700, 4096, 5000):
        for step in (0, 1, 4095 // size, 4096 // size, 9001 // size, 20_000 // size - 1):
            drawn, weight = Shuffled().draw(4, step, examples, size)
            np.testing.assert_array_equal(drawn, line[step * size : (step + 1) * size])
            assert (weight, drawn.dtype) == (None, np.int64)


def test_places_may_come_in_any_order():
    line = orders(4, 5, 100)
    epochs, places = np.random.default_rng(0).integers(0, [[5], [100]], (2, 300))
    np.testing.assert_array_equal(permutation(4, 100, epochs, places), line[epochs, places])


def test_a_batch_of_a_trillion_examples_takes_little_memory():
    tracemalloc.start()
    for step in range(0, 10**9, 10**8):
        Shuffled().draw(0, step, 10**12, 512)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1_500_000  # eight pages of 32 KB, and what one takes to compute


@pytest.mark.parametrize(("by", "number"), [("epochs", 40_000), ("seeds", 500)])
@pytest.mark.parametrize("examples", [2, 3, 4, 5, 6])
def test_all_orders_of_few_examples_are_alike(examples, number, by):
    """Chi-square over the 2, 6, 24, 120, 720 orders."""
    if number < 5 * math.factorial(examples):
        pytest.skip("too few of each order")
    codes = many_orders(examples, number, by) @ examples ** np.arange(examples)
    counts = np.unique(codes, return_counts=True)[1]
    counts = np.append(counts, np.zeros(math.factorial(examples) - len(counts)))
    assert scipy.stats.chisquare(counts).pvalue > CHANCE


@pytest.mark.parametrize("by", ["epochs", "seeds"])
@pytest.mark.parametrize("examples", [5, 10, 100, 1797])
def test_every_example_is_in_every_place_alike(examples, by):
    """Chi-square of places by examples, in up to ten classes each."""
    number = min(20_000, 600_000 // examples) if by == "epochs" else 300
    drawn = many_orders(examples, number, by)
    bins = min(10, examples)
    place = np.broadcast_to(np.arange(examples), drawn.shape)
    classes = np.stack([place, drawn]) * bins // examples
    sizes = np.bincount(classes[0, 0])
    table = np.histogram2d(*classes.reshape(2, -1), bins=bins)[0]
    want = number * np.outer(sizes, sizes) / examples
    # Both margins are fixed, and an order draws without replacement: hence the factor.
    statistic = ((table - want) ** 2 / want).sum() * (examples - 1) / examples
    assert scipy.stats.chi2((bins - 1) ** 2).sf(statistic) > CHANCE


@pytest.mark.parametrize("examples", [5, 10, 12, 20, 30, 100])
def test_pairs_of_an_epoch_are_alike(examples):
    """Chi-square over all pairs that two places can hold: where short networks are biased."""
    number = 100 * examples * (examples - 1) if examples < 50 else 50_000
    columns = math.ceil(examples / (2 * math.ceil(math.sqrt(examples) / 2)))
    epochs = np.repeat(np.arange(number), 3)
    places = np.tile([0, 1, columns], number)  # neighbours in a row and in a column of the grid
    drawn = permutation(0, examples, epochs, places).reshape(number, 3)
    for second in (1, 2):
        counts = np.bincount(drawn[:, 0] * examples + drawn[:, second], minlength=examples**2)
        counts = counts.reshape(examples, examples)
        assert not np.diag(counts).any()
        counts = counts[~np.eye(examples, dtype=bool)]
        assert scipy.stats.chisquare(counts).pvalue > CHANCE


@pytest.mark.parametrize("examples", [100, 1797])
def test_an_order_tells_nothing_of_the_next(examples):
    """An example keeps its place as often as by chance: once an epoch on average, variance 1."""
    drawn = orders(0, 1000, examples)
    for lag in (1, 2):
        same = (drawn[lag:] == drawn[:-lag]).sum(1)
        counts = np.bincount(same.clip(max=5), minlength=6)
        chances = [*scipy.stats.poisson(1).pmf(range(5)), scipy.stats.poisson(1).sf(4)]
        expected = len(same) * np.array(chances)
        assert scipy.stats.chisquare(counts, expected).pvalue > CHANCE


@pytest.mark.parametrize("examples", [1797, 60_000, 10_000_000, 10**12, 2**62])
def test_neighbours_epochs_and_seeds_are_not_correlated(examples):
    places = np.arange(1797)
    ranks = [at(*key, examples, places) / examples for key in ((0, 0), (0, 1), (1, 0), (1, 1))]
    pairs = [*itertools.combinations([places, *ranks], 2)]
    pairs += [(rank[:-lag], rank[lag:]) for rank in ranks for lag in (1, 2, 42, 64, 512)]
    for one, two in pairs:
        assert abs(np.corrcoef(one, two)[0, 1]) < 4 / math.sqrt(len(one))


# ------------------------------------------------------------------- Poisson batches


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
