"""Which examples make up which batch: pure functions of (seed, step, rows)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lsm.checks import THREADS, require
from lsm.data.dataset import Columns, Dataset, PathLike
from lsm.data.sampling import Sampling, Shuffled, augmentation
from lsm.data.source import Source
from lsm.data.transforms import Places, Transform, changed
from lsm.errors import ConfigError


class IfThere(str):
    """A split that is evaluated where the source has it, and else is None.

    A text in all else, so that configs compare and JSON says what was evaluated.
    """

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Data:
    """What an experiment learns from.

    Attributes:
      source: where the examples come from.
      train: split to train on, in TFDS's slicing syntax ("train[:90%]").
      validation: split to evaluate on during training, or None.
      test: split to evaluate on at the end, or None. Where it is not given, it is None for a source
        that has no split "test".
      augment: changes of training batches, in this order.
      evaluate: changes of evaluation batches, and of the files of pictures that a trained model is
        asked about, in this order; such as draw no random numbers, as `CenterCrop`.
      sampling: which examples make up a training batch: `Shuffled()` epochs, `Poisson(expected)`
        for differential privacy, or `ByLength(pool)` for texts in buckets.
      workers: threads that prepare batches ahead of the step; more than one pays
        where pictures are decoded for every batch.
    """

    source: Source
    train: str = "train"
    validation: str | None = None
    test: str | None = IfThere("test")
    augment: tuple[Transform, ...] = ()
    evaluate: tuple[Transform, ...] = ()
    sampling: Sampling = Shuffled()
    workers: int = dataclasses.field(default=1, metadata={"alters_run": False})

    def __post_init__(self):
        require(self, workers=f"[1, {THREADS}]")
        # Of another type than its own it is told of with all other fields, later.
        given = self.evaluate if isinstance(self.evaluate, tuple | list) else ()
        for transform in (x for x in given if isinstance(x, Transform)):
            if transform.draw(np.random.default_rng(0), 1):
                raise ConfigError(
                    f"Data.evaluate: {type(transform).__name__} draws random numbers; evaluation "
                    "takes what draws none, such as CenterCrop."
                )

    def settled(self, data_dir: PathLike | None = None) -> "Data":
        """Returns this with `test` as it is for what the source has; itself where that is given.

        Raises:
          DataError: the data is not there.
        """
        if not isinstance(self.test, IfThere):
            return self
        splits = self.source.splits(data_dir)
        # Where nobody knows, opening the split will tell.
        there = splits is None or self.test in splits
        return dataclasses.replace(self, test=str(self.test) if there else None)


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Training batches by step; see `lsm.data.sampling` for which examples they hold.

    Where the sampling fills batches up, column `weight` float32 (n, ...) is 0 in the rows added and
    1 elsewhere, times the dataset's own weights where it has some.

    Attributes:
      dataset: where the examples are.
      batch_size: rows of a batch over all processes.
      seed: of order and augmentation, at least 0.
      augment: changes of the batch, in this order.
      rows: (n,) integers, the rows of each batch that are read here (`lsm.mesh.local_rows`);
        None reads all.
      sampling: which examples make up a batch.
    """

    dataset: Dataset
    batch_size: int
    seed: int = 0
    augment: tuple[Transform, ...] = ()
    rows: np.ndarray | None = None
    sampling: Sampling = Shuffled()

    def __post_init__(self):
        _check_size(self.batch_size)
        if self.seed < 0:
            raise ConfigError(f"train.seed: {self.seed} is negative; a seed is 0 or more.")
        self.sampling.check(len(self.dataset), self.batch_size)

    @functools.cached_property
    def _drawn(self) -> Callable[..., Any]:
        return self.sampling.of(self.dataset).draw

    def width_at(self, step: int) -> int | None:
        """Returns the tokens (T) that texts of batch `step` are cut to; None without texts."""
        examples, _ = self._drawn(self.seed, step, len(self.dataset), self.batch_size)
        return _width(self.dataset, examples)

    def examples_at(self, step: int) -> Columns:
        """Returns which examples `rows` of batch `step` are: column "examples" (n,) int32."""
        examples, _ = self._drawn(self.seed, step, len(self.dataset), self.batch_size)
        rows = slice(None) if self.rows is None else self.rows
        return {"examples": examples[rows].astype(np.int32)}

    def batch_at(self, step: int) -> Columns:
        """Returns `rows` of batch `step` (0, 1, ...), columns of shape (n, ...)."""
        rows = slice(None) if self.rows is None else self.rows
        examples, weight = self._drawn(self.seed, step, len(self.dataset), self.batch_size)
        batch = _cut(self.dataset.take(examples[rows]), self.dataset, examples)
        if self.augment:
            rng = augmentation(self.seed, step)
            epochs = self.sampling.epochs(step, len(self.dataset), self.batch_size)
            places = Places(self.seed, examples, epochs)
        for transform in self.augment:
            # Drawn for the whole batch, then cut: any number of processes sees the same.
            drawn = transform.draw_at(rng, places)
            batch = transform.apply(batch, {name: x[rows] for name, x in drawn.items()})
        return batch if weight is None else _weighed(batch, weight[rows])


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Evaluation batches by number: every example once, in order.

    The last batch is filled up by repeating the last example, with column `weight` float32 0 there
    and 1 elsewhere. Where the dataset has weights itself (`CharText`), they are multiplied.

    Attributes:
      dataset: where the examples are; read in its `evaluation()` form.
      batch_size: examples of a batch over all processes.
      rows: (n,) integers, the rows of each batch that are read here; None reads all.
      change: changes of each batch, which draw no random numbers.
    """

    dataset: Dataset
    batch_size: int
    rows: np.ndarray | None = None
    change: tuple[Transform, ...] = ()

    def __post_init__(self):
        _check_size(self.batch_size)
        # Before anyone asks for the length: side by side, windows are fewer than overlapping ones.
        object.__setattr__(self, "dataset", self.dataset.evaluation())

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.dataset) // self.batch_size)

    def batch_at(self, number: int) -> Columns:
        """Returns `rows` of batch `number`, columns of shape (n, ...)."""
        # NumPy would take a negative place as one from the end.
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        rows = np.arange(self.batch_size) if self.rows is None else self.rows
        places = number * self.batch_size + rows
        last = len(self.dataset) - 1
        # Full batches only: another shape would compile the evaluation step once more.
        batch = self.dataset.take(np.minimum(places, last))
        start = number * self.batch_size
        everyone = np.arange(start, min(start + self.batch_size, len(self.dataset)))
        batch = changed(_cut(batch, self.dataset, everyone), self.change)
        return _weighed(batch, (places <= last).astype(np.float32))


def _width(dataset: Dataset, examples: np.ndarray) -> int | None:
    encoder = dataset.encoder
    return None if encoder is None else encoder.width(dataset.lengths(examples))


def _cut(batch: Columns, dataset: Dataset, examples: np.ndarray) -> Columns:
    """Returns a batch whose texts are as wide as the bucket of all `examples` of the batch.

    Of all, not of the rows that are read here: every process must come to the same shapes.
    """
    width = _width(dataset, examples)
    return batch if width is None else dataset.encoder.cut(batch, width)


def _weighed(batch: Columns, weight: np.ndarray) -> Columns:
    """Returns the batch with column `weight`: (n,) float32, times the weights that it has."""
    if "weight" in batch:
        own = batch["weight"]
        # Of a row (n,) times of its tokens (n, T): (n, 1) meets every token.
        weight = own * weight.reshape(-1, *[1] * (own.ndim - 1))
    return batch | {"weight": weight}


def _check_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"train.batch_size: {batch_size} must be above 0.")
