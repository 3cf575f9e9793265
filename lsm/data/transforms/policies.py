"""Changes chosen by chance from fourteen: RandAugment and TrivialAugment, as in torchvision."""

import dataclasses
from collections.abc import Callable

import numpy as np

from lsm.checks import require, require_sizes
from lsm.data.dataset import Columns
from lsm.data.transforms import operations
from lsm.data.transforms.base import Transform
from lsm.data.transforms.operations import Picture, each


@dataclasses.dataclass(frozen=True)
class _Reach:
    """How far the changes go at a strength of 1; at 0 they do nothing."""

    shear: float  # slope
    translate: Callable[[int], float]  # from a side of the picture to pixels
    rotate: float  # degrees
    enhance: float  # from a factor of 1
    posterize: int  # bits dropped


_RAND = _Reach(0.3, lambda side: 150 / 331 * side, 30.0, 0.9, 4)
_WIDE = _Reach(0.99, lambda side: 32.0, 135.0, 0.99, 6)

_CHANGES: tuple[Callable[[Picture, _Reach, float], Picture], ...] = (
    lambda picture, to, by: picture,
    lambda picture, to, by: operations.shear_x(picture, by * to.shear),
    lambda picture, to, by: operations.shear_y(picture, by * to.shear),
    lambda picture, to, by: operations.translate_x(picture, by * to.translate(picture.width)),
    lambda picture, to, by: operations.translate_y(picture, by * to.translate(picture.height)),
    lambda picture, to, by: operations.rotate(picture, by * to.rotate),
    lambda picture, to, by: operations.brightness(picture, 1 + by * to.enhance),
    lambda picture, to, by: operations.saturation(picture, 1 + by * to.enhance),
    lambda picture, to, by: operations.contrast(picture, 1 + by * to.enhance),
    lambda picture, to, by: operations.sharpness(picture, 1 + by * to.enhance),
    lambda picture, to, by: operations.posterize(picture, 8 - round(abs(by) * to.posterize)),
    lambda picture, to, by: operations.solarize(picture, 255 * (1 - abs(by))),
    lambda picture, to, by: operations.autocontrast(picture),
    lambda picture, to, by: operations.equalize(picture),
)
"""How a strength from -1 to 1 changes a picture; what a seed draws depends on their order."""


def changed(picture: Picture, changes: np.ndarray, strengths: np.ndarray, reach: _Reach) -> Picture:
    """Returns a picture after some of the changes, by number, of strengths from -1 to 1."""
    for number, strength in zip(changes.tolist(), strengths.tolist(), strict=True):
        picture = _CHANGES[number](picture, reach, strength)
    return picture


@dataclasses.dataclass(frozen=True)
class RandAugment(Transform):
    """Some changes after each other, all of one strength (Cubuk et al. 2020, arXiv:1909.13719).

    Of column `image`, uint8 of 1 or 3 channels, by the fourteen changes of torchvision: none,
    shear and translation along each side, rotation, brightness, saturation, contrast, sharpness,
    posterize, solarize, autocontrast, equalize. What comes in from outside is black.

    Attributes:
      num_ops: changes of each picture, drawn with replacement.
      magnitude: their strength, 0 to `bins` - 1; signs are drawn.
      bins: number of strengths, from nothing to the most: a shear of 0.3, 45 % of the side, 30
        degrees, a factor of 0.1 or 1.9, 4 bits.
    """

    num_ops: int = 2
    magnitude: int = 9
    bins: int = 31

    def __post_init__(self):
        require_sizes(self, "num_ops")
        require(self, bins="[2, inf)")
        require(self, magnitude=f"[0, {self.bins - 1}]")

    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """See `Transform.draw`."""
        changes = rng.integers(0, len(_CHANGES), (examples, self.num_ops))
        signs = rng.choice([-1.0, 1.0], (examples, self.num_ops))
        return {"changes": changes, "strengths": signs * (self.magnitude / (self.bins - 1))}

    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """See `Transform.apply`."""
        return each(
            self, batch, lambda *of: changed(*of, _RAND), drawn["changes"], drawn["strengths"]
        )


@dataclasses.dataclass(frozen=True)
class TrivialAugment(Transform):
    """One change, of a strength by chance (Müller and Hutter 2021, arXiv:2103.10158).

    Of column `image`, uint8 of 1 or 3 channels: one of the changes of `RandAugment`, in the wide
    space of the paper: at the most a shear of 0.99, 32 pixels, 135 degrees, a factor of 0.01 or
    1.99, 6 bits.

    Attributes:
      bins: number of strengths, from nothing to the most.
    """

    bins: int = 31

    def __post_init__(self):
        require(self, bins="[2, inf)")

    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """See `Transform.draw`."""
        changes = rng.integers(0, len(_CHANGES), (examples, 1))
        signs = rng.choice([-1.0, 1.0], (examples, 1))
        strengths = rng.integers(0, self.bins, (examples, 1)) / (self.bins - 1)
        return {"changes": changes, "strengths": signs * strengths}

    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """See `Transform.apply`."""
        return each(
            self, batch, lambda *of: changed(*of, _WIDE), drawn["changes"], drawn["strengths"]
        )
