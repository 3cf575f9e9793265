"""What an augmentation is: random numbers of a whole batch, and what they make of some rows.

A transform draws its random numbers apart from applying them. The draw is for the whole global
batch, from a generator keyed by (seed, step); each process applies its own rows of it. So a batch
does not depend on how many processes share it. What an example met in earlier epochs is no state
either: a transform may be told which examples the rows are, and of which epochs.
"""

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np

from lsm.data.dataset import Columns
from lsm.errors import DataError, listed

IMAGE = "image"
"""The column that transforms of pictures change, (B, H, W, C)."""


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the rows of a batch stand in a run.

    Attributes:
      seed: of the run.
      examples: (B,) integers, numbers of the examples.
      epochs: (B,) integers, how many epochs are over; a batch may end one and begin the next.
    """

    seed: int
    examples: np.ndarray
    epochs: np.ndarray


class Transform(abc.ABC):
    """A random change of a batch; a frozen dataclass, so that a config can hold it."""

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """Returns random numbers for `examples` examples, as arrays (examples, ...) by name."""

    def draw_at(self, rng: np.random.Generator, places: Places) -> Columns:
        """Returns what `draw` does, for rows whose places are known: what batches call."""
        return self.draw(rng, len(places.examples))

    @abc.abstractmethod
    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """Returns the changed batch; `drawn` has its rows. Does not write into `batch`."""

    def __call__(self, batch: Columns, rng: np.random.Generator) -> Columns:
        """Draws for the rows of `batch` and applies."""
        return self.apply(batch, self.draw(rng, len(next(iter(batch.values())))))


def image_of(transform: Transform, batch: Columns) -> np.ndarray:
    """Returns column `image`, of pictures of any sizes; raises DataError where there is none."""
    if IMAGE not in batch:
        raise DataError(
            f"{type(transform).__name__}: the data has no column {IMAGE!r}; it has {listed(batch)}."
        )
    return batch[IMAGE]


def pictures(transform: Transform, batch: Columns) -> np.ndarray:
    """Returns column `image`; raises DataError where it is not one array (B, H, W, C)."""
    image = image_of(transform, batch)
    if image.dtype == object or image.ndim != 4:
        raise DataError(
            f"{type(transform).__name__}: pictures are {image.dtype} {image.shape}; (B, H, W, C) "
            "is needed."
        )
    return image


def changed(batch: Columns, transforms: Sequence[Transform]) -> Columns:
    """Returns the batch after transforms that draw no random numbers, in this order."""
    for transform in transforms:
        batch = transform.apply(batch, {})
    return batch
