"""Which examples make up which batch: pure functions of (seed, step, rows)."""

import dataclasses
import functools

import numpy as np

from lsm.data.dataset import Columns, Dataset, Source
from lsm.data.transforms import Transform
from lsm.errors import ConfigError

_SHUFFLE, _AUGMENT = 0, 1  # random streams of one seed


@dataclasses.dataclass(frozen=True)
class Data:
    """What an experiment learns from.

    Attributes:
      source: where the examples come from.
      train: split to train on, in TFDS's slicing syntax ("train[:90%]").
      validation: split to evaluate on during training, or None.
      test: split to evaluate on at the end, or None.
      augment: changes of training batches, in this order.
      workers: threads that prepare batches ahead of the step, at least 1; more than one pays
        where pictures are decoded for every batch.
    """

    source: Source
    train: str = "train"
    validation: str | None = None
    test: str | None = "test"
    augment: tuple[Transform, ...] = ()
    workers: int = dataclasses.field(default=1, metadata={"alters_run": False})

    def __post_init__(self):
        if self.workers < 1:
            raise ConfigError(f"data.workers: {self.workers} is below 1.")


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Training batches by step.

    The examples of epoch e are ordered by a permutation keyed by (seed, e); the epochs follow each
    other, and step s takes places s * batch_size to (s + 1) * batch_size of that endless line. A
    batch may thus end one epoch and begin the next, and every epoch holds every example once.

    Attributes:
      dataset: where the examples are.
      batch_size: examples of a batch over all processes.
      seed: of order and augmentation, at least 0.
      augment: changes of the batch, in this order.
      rows: (n,) integers, the rows of each batch that are read here (`lsm.sharding.local_rows`);
        None reads all.
    """

    dataset: Dataset
    batch_size: int
    seed: int = 0
    augment: tuple[Transform, ...] = ()
    rows: np.ndarray | None = None

    def __post_init__(self):
        _check_size(self.batch_size)
        if self.seed < 0:
            raise ConfigError(f"train.seed: {self.seed} is negative; a seed is 0 or more.")

    def batch_at(self, step: int) -> Columns:
        """Returns `rows` of batch `step` (0, 1, ...), columns of shape (n, ...)."""
        rows = slice(None) if self.rows is None else self.rows
        batch = self.dataset.take(self._examples(step * self.batch_size, self.batch_size)[rows])
        if self.augment:
            rng = np.random.Generator(_bits(self.seed, _AUGMENT, step))
        for transform in self.augment:
            drawn = transform.draw(rng, self.batch_size)
            batch = transform.apply(batch, {name: x[rows] for name, x in drawn.items()})
        return batch

    def _examples(self, place: int, count: int) -> np.ndarray:
        """The examples at `count` places of the endless line of epochs."""
        parts = []
        while count:
            epoch, start = divmod(place, len(self.dataset))
            order = permutation(self.seed, epoch, len(self.dataset))
            parts.append(order[start : start + count])
            place += len(parts[-1])
            count -= len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Evaluation batches by number: every example once, in order.

    The last batch is filled up by repeating the last example, with column `weight` float32 0 there
    and 1 elsewhere. Where the dataset has weights itself (`CharText`), they are multiplied.

    Attributes:
      dataset: where the examples are; read in its `evaluation()` form.
      batch_size: examples of a batch over all processes.
      rows: (n,) integers, the rows of each batch that are read here; None reads all.
    """

    dataset: Dataset
    batch_size: int
    rows: np.ndarray | None = None

    def __post_init__(self):
        _check_size(self.batch_size)
        object.__setattr__(self, "dataset", self.dataset.evaluation())

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.dataset) // self.batch_size)

    def batch_at(self, number: int) -> Columns:
        """Returns `rows` of batch `number`, columns of shape (n, ...)."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        rows = np.arange(self.batch_size) if self.rows is None else self.rows
        places = number * self.batch_size + rows
        last = len(self.dataset) - 1
        batch = self.dataset.take(np.minimum(places, last))
        weight = (places <= last).astype(np.float32)
        if "weight" in batch:
            own = batch["weight"]
            weight = own * weight.reshape(-1, *[1] * (own.ndim - 1))
        return batch | {"weight": weight}


@functools.lru_cache(maxsize=4)  # the current and the next epoch of two training sets
def permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    """Returns the order (examples,) int64 of an epoch, the same on every machine and NumPy version.

    Sorts the raw numbers of Philox (Salmon et al., 2011), whose stream NumPy guarantees, which it
    does not for `Generator.permutation`. The low bits of each number make way for its place, so
    that equal numbers cannot occur and a sort (faster than an argsort) is enough.
    """
    places = np.uint64((1 << examples.bit_length()) - 1)
    keys = _bits(seed, _SHUFFLE, epoch).random_raw(examples) & ~places
    keys |= np.arange(examples, dtype=np.uint64)
    keys.sort()
    order = (keys & places).view(np.int64)
    order.flags.writeable = False  # it is cached and handed out as views
    return order


def _bits(seed: int, stream: int, number: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence((seed, stream, number)))


def _check_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"train.batch_size: {batch_size} must be above 0.")
