"""How examples are chosen for training batches: pure functions of (seed, step)."""

import abc
import dataclasses
import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np

from lsm.checks import require, require_sizes
from lsm.errors import ConfigError

_SHUFFLE, _AUGMENT, _POISSON, _COINS, _POOL = 0, 1, 2, 3, 4  # random streams of one seed
_PAGE = 4096  # places computed at a time: NumPy takes nearly as long for 64 as for 1,000
_SPLITMIX = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)


class Sampling(abc.ABC):
    """Which examples make up which batch. Subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def draw(
        self, seed: int, step: int, examples: int, batch_size: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the examples of batch `step`, and how much they weigh.

        Args:
          seed: of the run, at least 0.
          step: 0, 1, ...
          examples: number of examples that there are.
          batch_size: rows of the batch.

        Returns:
          (batch_size,) int64, numbers of examples; (batch_size,) float32, or None for 1.
        """

    @abc.abstractmethod
    def mean(self, batch_size: int) -> float:
        """Returns how many examples a batch of `batch_size` rows holds on average."""

    def of(self, dataset: Any) -> "Sampling":
        """Returns what draws from an `lsm.data.Dataset`: itself, unless that depends on it."""
        del dataset
        return self

    def epochs(self, step: int, examples: int, batch_size: int) -> np.ndarray:
        """Returns how many epochs are over where each row of batch `step` is, (batch_size,) int64.

        Here of the whole batch: the examples drawn before it, on average, over all there are.
        """
        return np.full(batch_size, int(step * self.mean(batch_size)) // examples)

    def check(self, examples: int, batch_size: int) -> None:
        """Raises ConfigError where batches of this size cannot be drawn from so many examples."""
        del examples, batch_size


@dataclasses.dataclass(frozen=True)
class Shuffled(Sampling):
    """Epoch after epoch, each in an order of its own; every epoch holds every example once.

    The examples of epoch e are ordered by a permutation keyed by (seed, e); the epochs follow each
    other, and step s takes places s * batch_size to (s + 1) * batch_size of that endless line. A
    batch may thus end one epoch and begin the next.
    """

    def draw(self, seed: int, step: int, examples: int, batch_size: int) -> tuple[np.ndarray, None]:
        """See `Sampling.draw`; all weigh 1."""
        first, last = step * batch_size, (step + 1) * batch_size - 1
        pages = range(first // _PAGE, last // _PAGE + 1)
        line = np.concatenate([_page(seed, examples, page) for page in pages])
        start = first - pages[0] * _PAGE
        return line[start : start + batch_size], None

    def epochs(self, step: int, examples: int, batch_size: int) -> np.ndarray:
        """See `Sampling.epochs`; the rows of one batch may be of two epochs."""
        return np.arange(step * batch_size, (step + 1) * batch_size) // examples

    def mean(self, batch_size: int) -> float:
        """Returns `batch_size`."""
        return batch_size


@dataclasses.dataclass(frozen=True)
class ByLength(Shuffled):
    """`Shuffled` epochs, in which texts of about the same length are in one batch.

    `pool` batches at a time: within each epoch their examples are sorted by the length of their
    longest text, and cut into batches, whose order is drawn. Every epoch holds every example once,
    and which those of a batch are is a function of seed, step and all lengths. Shorter batches are
    worth something with `Texts.buckets`.

    Attributes:
      pool: batches that are sorted together; more are more even in length, and less random.
    """

    pool: int = 50

    def __post_init__(self):
        require_sizes(self, "pool")

    def of(self, dataset: Any) -> "Sampling":
        """See `Sampling.of`."""
        return _Sorted(self.pool, dataset.lengths(np.arange(len(dataset))))


class _Sorted(ByLength):
    """`ByLength` of examples of these lengths (N,)."""

    def __init__(self, pool: int, lengths: np.ndarray):
        object.__setattr__(self, "pool", pool)
        batches = functools.lru_cache(4)(functools.partial(_pool, lengths, pool))
        object.__setattr__(self, "_batches", batches)

    def draw(self, seed: int, step: int, examples: int, batch_size: int) -> tuple[np.ndarray, None]:
        number, place = divmod(step, self.pool)
        return self._batches(seed, batch_size, number)[place], None


def _pool(lengths: np.ndarray, pool: int, seed: int, batch_size: int, number: int) -> np.ndarray:
    """Returns the examples (pool, batch_size) of the batches of a pool."""
    line, _ = Shuffled().draw(seed, number, len(lengths), pool * batch_size)
    epochs = Shuffled().epochs(number, len(lengths), pool * batch_size)
    order = np.lexsort((lengths[line], epochs))  # stable: by epoch, then length, then as drawn
    batches, epochs = line[order].reshape(pool, -1), epochs.reshape(pool, -1)
    draws = bits(seed, _POOL, number).random_raw(pool)
    for epoch in range(epochs[0, 0], epochs[-1, -1] + 1):
        # A batch that begins the next epoch stays between the two.
        whole = np.flatnonzero((epochs == epoch).all(axis=1))
        batches[whole] = batches[whole[np.argsort(draws[whole], kind="stable")]]
    return batches


@dataclasses.dataclass(frozen=True)
class Poisson(Sampling):
    """Every example enters a batch independently with probability q = expected / examples.

    The batches that the accounts of DP-SGD are for (Abadi et al. 2016, arXiv:1607.00133); they
    count on it that nobody knows the seed. A batch holds the chosen examples in ascending order,
    and is filled up to `train.batch_size` by repeats of weight 0. It may be empty: all weigh 0.

    Attributes:
      expected: mean number of examples of a batch, at most all that there are;
        `train.batch_size` must leave room for more.
    """

    expected: int | float

    def __post_init__(self):
        require(self, expected="(0, inf)")

    def draw(
        self, seed: int, step: int, examples: int, batch_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Sampling.draw`; an example is chosen where its 64 random bits are below 2^64 q.

        Raises:
          ConfigError: more are chosen than the batch has rows; none is ever left out.
        """
        # Exact integers: q is rounded up to a multiple of 2^-64, on every machine alike.
        below = math.ceil(Fraction(self.expected) * 2**64 / examples)
        raw = bits(seed, _POISSON, step).random_raw(examples)
        chosen = np.flatnonzero(raw <= np.uint64(below - 1))
        if len(chosen) > batch_size:
            raise ConfigError(
                f"train.batch_size: {batch_size} given, but Poisson sampling drew {len(chosen)} "
                f"examples for step {step + 1}; a larger batch is needed, as none may be left out."
            )
        padding = np.full(batch_size - len(chosen), chosen[-1] if len(chosen) else 0)
        weight = (np.arange(batch_size) < len(chosen)).astype(np.float32)
        return np.concatenate([chosen, padding]), weight

    def mean(self, batch_size: int) -> float:
        """Returns `expected`."""
        del batch_size
        return self.expected

    def check(self, examples: int, batch_size: int) -> None:
        """Checks that there are enough examples, and rows for all but the rarest draws."""
        if self.expected > examples:
            raise ConfigError(
                f"Poisson.expected: {self.expected} given; allowed: at most {examples}, "
                "the number of training examples."
            )
        rows = self.capacity(examples)
        if batch_size < rows:
            raise ConfigError(
                f"train.batch_size: {batch_size} given; Poisson sampling of {self.expected} out of "
                f"{examples} examples needs {rows} or more, for draws above the mean."
            )

    def capacity(self, examples: int) -> int:
        """Returns the rows that a draw exceeds with a probability below e^-18 = 1.5e-8.

        Bernstein's inequality for a binomial of variance v: P(X >= mean + t) is at most
        exp(-t^2 / (2 v + 2 t / 3)), which is e^-18 for t = 6 + 6 sqrt(1 + v): six standard
        deviations, and the rest for small means, which are skewed.
        """
        variance = self.expected * (1 - self.expected / examples)
        return min(examples, math.ceil(self.expected + 6 + 6 * math.sqrt(1 + variance)))


@functools.lru_cache(maxsize=8)
def _page(seed: int, examples: int, page: int) -> np.ndarray:
    """Returns (_PAGE,) int64: which examples stand at these places of the line of epochs."""
    epochs, places = np.divmod(np.arange(page * _PAGE, (page + 1) * _PAGE), examples)
    return permutation(seed, examples, epochs, places)


def permutation(seed: int, examples: int, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns which examples stand at some places of epochs; no other place is computed.

    The places of an epoch are the cells of a grid of about sqrt(examples) rows and columns, on
    which a Feistel network (Luby and Rackoff, 1988), here by addition modulo its sides (Black and
    Rogaway, 2002), is a permutation for whatever round function. The grid may have some cells too
    many, at most three or a column: from there the network goes on until it comes to an example
    ("cycle walking", the same paper), which makes it a permutation of the examples.

    A network of r rounds prefers some orders: pairs of examples come up to about b^(-r/2) more
    often than they should, for the shorter side b. So r is 8, and where b is below 16, as many
    more as b^r >= 2^32 takes: a bias of 2^-16 shows after 2^32 epochs.

    Args:
      seed: of the run, at least 0.
      examples: number of examples that there are, 1 to 2^63 - 1.
      epochs: (n,) integers, at least 0; the keys of all from the first to the last are made.
      places: (n,) integers, each in [0, examples).

    Returns:
      (n,) int64, the examples; the same on every machine and NumPy version.
    """
    rows = math.isqrt(examples - 1) + 1
    rows += rows % 2  # were both sides odd, so would be no round as a permutation
    columns = max(2, -(-examples // rows))
    rounds = 8
    while columns**rounds < 2**32:
        rounds += 4
    keys = _round_keys(seed, epochs, rounds)
    cells = _feistel(places.astype(np.uint64), rows, columns, keys)
    while (outside := np.flatnonzero(cells >= examples)).size:
        cells[outside] = _feistel(cells[outside], rows, columns, keys[:, outside])
    return cells.view(np.int64)


def _round_keys(seed: int, epochs: np.ndarray, rounds: int) -> np.ndarray:
    """Returns (rounds, n) uint64 for `epochs` (n,); `rounds` is a multiple of 4.

    Epoch e takes its keys from place e * rounds of one stream of Philox, whose raw numbers NumPy
    guarantees; a count of its counter stands for four of them (Salmon et al., 2011).
    """
    first, last = int(epochs.min()), int(epochs.max())
    stream = np.random.SeedSequence((seed, _SHUFFLE))
    philox = np.random.Philox(stream, counter=first * rounds // 4)
    keys = philox.random_raw((last + 1 - first) * rounds).reshape(-1, rounds)
    return keys.T[:, epochs - first]


def _feistel(cells: np.ndarray, rows: int, columns: int, keys: np.ndarray) -> np.ndarray:
    """Returns where the rounds of `keys` take `cells` (n,) uint64, numbered row by row.

    A round leaves one coordinate as it is and moves the other by a hash of it. The hash multiplies
    by the constants of SplitMix64 (Steele, Lea and Flood, 2014) and folds the upper half onto the
    lower in between; its upper 32 bits, a fraction of 2^32, become a number below the side by a
    multiplication and no division (Lemire, 2019).
    """
    moved, fixed = np.divmod(cells, columns)
    side, other = rows, columns
    for key in keys:
        hashed = fixed ^ key
        hashed *= _SPLITMIX[0]
        hashed ^= hashed >> 32
        hashed *= _SPLITMIX[1]
        moved += ((hashed >> 32) * side) >> 32
        np.minimum(moved, moved - side, out=moved)  # modulo: below 0 unsigned numbers are huge
        moved, fixed = fixed, moved
        side, other = other, side
    return moved * columns + fixed


def augmentation(seed: int, step: int) -> np.random.Generator:
    """Returns the random numbers for the augmentation of batch `step`."""
    return np.random.Generator(bits(seed, _AUGMENT, step))


def coins(seed: int, examples: np.ndarray) -> np.ndarray:
    """Returns a fair coin of each example, (n,) bool: a function of seed and example alone.

    The highest bit of SplitMix64's output (Steele, Lea and Flood, 2014), whose state is the example
    times its odd constant, set off by a key of the seed.

    Args:
      seed: of the run, at least 0.
      examples: (n,) integers, numbers of examples.
    """
    hashed = examples.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashed += np.uint64(bits(seed, _COINS, 0).random_raw())
    for shift, factor in zip((30, 27), _SPLITMIX, strict=True):
        hashed = (hashed ^ (hashed >> np.uint64(shift))) * factor
    return (hashed ^ (hashed >> np.uint64(31))) >> np.uint64(63) == 1


def bits(seed: int, stream: int, number: int) -> np.random.Philox:
    """Returns the raw random numbers of one stream: for one epoch, or one step."""
    return np.random.Philox(np.random.SeedSequence((seed, stream, number)))
