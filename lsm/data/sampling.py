"""How examples are chosen for training batches: pure functions of (seed, step)."""

import abc
import dataclasses
import functools
import math
from fractions import Fraction

import numpy as np

from lsm.checks import require
from lsm.errors import ConfigError

_SHUFFLE, _AUGMENT, _POISSON = 0, 1, 2  # random streams of one seed


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
        parts, place, count = [], step * batch_size, batch_size
        while count:
            epoch, start = divmod(place, examples)
            parts.append(permutation(seed, epoch, examples)[start : start + count])
            place += len(parts[-1])
            count -= len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts), None

    def mean(self, batch_size: int) -> float:
        """Returns `batch_size`."""
        return batch_size


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


@functools.lru_cache(maxsize=4)  # the current and the next epoch of two training sets
def permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    """Returns the order (examples,) int64 of an epoch, the same on every machine and NumPy version.

    Sorts the raw numbers of Philox (Salmon et al., 2011), whose stream NumPy guarantees, which it
    does not for `Generator.permutation`. The low bits of each number make way for its place, so
    that equal numbers cannot occur and a sort (faster than an argsort) is enough.
    """
    places = np.uint64((1 << examples.bit_length()) - 1)
    keys = bits(seed, _SHUFFLE, epoch).random_raw(examples) & ~places
    keys |= np.arange(examples, dtype=np.uint64)
    keys.sort()
    order = (keys & places).view(np.int64)
    order.flags.writeable = False  # it is cached and handed out as views
    return order


def augmentation(seed: int, step: int) -> np.random.Generator:
    """Returns the random numbers for the augmentation of batch `step`."""
    return np.random.Generator(bits(seed, _AUGMENT, step))


def bits(seed: int, stream: int, number: int) -> np.random.Philox:
    """Returns the raw random numbers of one stream: for one epoch, or one step."""
    return np.random.Philox(np.random.SeedSequence((seed, stream, number)))
