"""Augmentation of pictures: vectorised NumPy on batches of any dtype, which stays.

A transform draws its random numbers apart from applying them. The draw is for the whole global
batch, from a generator keyed by (seed, step); each process applies its own rows of it. So a batch
does not depend on how many processes share it. What an example met in earlier epochs is no state
either: a transform may be told which examples the rows are, and of which epochs.
"""

import abc
import dataclasses

import numpy as np

from lsm.data.dataset import Columns
from lsm.data.sampling import coins
from lsm.errors import ConfigError

_IMAGE = "image"


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


@dataclasses.dataclass(frozen=True)
class RandomFlip(Transform):
    """Mirrors column `image` (B, H, W, C) left to right.

    Attributes:
      probability: of mirroring an example, 0 to 1.
    """

    probability: float = 0.5

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"RandomFlip.probability: {self.probability} is not in 0 to 1.")

    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """See `Transform.draw`."""
        return {"mirror": rng.random(examples) < self.probability}

    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """See `Transform.apply`."""
        return batch | {_IMAGE: _mirrored(batch[_IMAGE], drawn["mirror"])}


@dataclasses.dataclass(frozen=True)
class AlternatingFlip(Transform):
    """Mirrors column `image` (B, H, W, C) left to right, each picture in every second epoch.

    Which epochs these are is a coin of the picture, so that two epochs together hold each picture
    in both forms; `RandomFlip` shows half of them twice the same (Jordan 2024, arXiv:2404.00498,
    section 3.6).
    """

    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """See `Transform.draw`: coins, as in a first epoch."""
        return {"mirror": rng.random(examples) < 0.5}

    def draw_at(self, rng: np.random.Generator, places: Places) -> Columns:
        """See `Transform.draw_at`: coins of seed and example, turned over by every epoch."""
        return {"mirror": coins(places.seed, places.examples) ^ (places.epochs % 2 == 1)}

    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """See `Transform.apply`."""
        return batch | {_IMAGE: _mirrored(batch[_IMAGE], drawn["mirror"])}


@dataclasses.dataclass(frozen=True)
class RandomCrop(Transform):
    """Pads column `image` (B, H, W, C) on every side and cuts H x W out at a random place.

    The usual augmentation of CIFAR (He et al., 2016, section 4.2: 4 pixels of zeros).

    Attributes:
      padding: pixels added on every side, at least 1.
      reflect: whether the padding mirrors the picture at its border; else it is zero.
    """

    padding: int = 4
    reflect: bool = False

    def __post_init__(self):
        if self.padding < 1:
            raise ConfigError(f"RandomCrop.padding: {self.padding} is below 1.")

    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """See `Transform.draw`."""
        return {"corner": rng.integers(0, 2 * self.padding + 1, (examples, 2))}

    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """See `Transform.apply`."""
        image = batch[_IMAGE]
        b, h, w, c = image.shape
        if self.reflect and self.padding >= min(h, w):
            raise ConfigError(
                f"RandomCrop.padding: {self.padding} cannot mirror pictures of {h} x {w}; "
                f"the padding must be smaller."
            )
        padded = _pad(image, self.padding, self.reflect)
        # Rows of W * C numbers instead of W pixels: the copies are longer, hence fewer.
        lines = padded.reshape(b, h + 2 * self.padding, (w + 2 * self.padding) * c)
        windows = np.lib.stride_tricks.sliding_window_view(lines, (h, w * c), axis=(1, 2))
        # (B, 2p + 1, 2pC + 1, H, W * C); of the third axis every C-th place begins a pixel.
        y, x = drawn["corner"].T
        return batch | {_IMAGE: windows[np.arange(b), y, x * c].reshape(b, h, w, c)}


@dataclasses.dataclass(frozen=True)
class Cutout(Transform):
    """Sets a square of column `image` (B, H, W, C) to one value (DeVries and Taylor, 2017).

    As in the paper, the centre is anywhere in the picture, so that part of the square may be
    outside.

    Attributes:
      size: side of the square in pixels, at least 1.
      value: what it is filled with, in the units of the pictures, 0 to 255.
    """

    size: int = 16
    value: int | float = 0

    def __post_init__(self):
        if self.size < 1:
            raise ConfigError(f"Cutout.size: {self.size} is below 1.")
        if not 0 <= self.value <= 255:
            raise ConfigError(f"Cutout.value: {self.value} is not in 0 to 255.")

    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """See `Transform.draw`."""
        return {"centre": rng.random((examples, 2))}

    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """See `Transform.apply`."""
        image = batch[_IMAGE].copy()
        if image.dtype.kind != "f" and np.array(self.value).astype(image.dtype) != self.value:
            raise ConfigError(
                f"Cutout.value: {self.value} cannot be held by pictures of {image.dtype}."
            )
        sides = np.array(image.shape[1:3])
        top_left = (drawn["centre"] * sides).astype(int) - self.size // 2
        starts = np.maximum(top_left, 0).tolist()  # slices of Python's ints are faster
        stops = np.minimum(top_left + self.size, sides).tolist()
        for picture, (y0, x0), (y1, x1) in zip(image, starts, stops, strict=True):
            picture[y0:y1, x0:x1] = self.value
        return batch | {_IMAGE: image}


@dataclasses.dataclass(frozen=True)
class RandomRotate(Transform):
    """Rotates column `image` (B, H, W, C) about its centre, bilinear; outside is zero.

    Attributes:
      degrees: the angle is uniform in -degrees to degrees; above 0, at most 180.
    """

    degrees: float = 15.0

    def __post_init__(self):
        if not 0 < self.degrees <= 180:
            raise ConfigError(f"RandomRotate.degrees: {self.degrees} is not above 0, at most 180.")

    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """See `Transform.draw`."""
        return {"angle": np.deg2rad(rng.uniform(-self.degrees, self.degrees, examples))}

    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """See `Transform.apply`."""
        cos, sin = np.cos(drawn["angle"]), np.sin(drawn["angle"])
        # Which way it turns is left open: the angles are symmetric.
        matrix_Bx2x2 = np.stack([cos, -sin, sin, cos], axis=-1).reshape(-1, 2, 2)
        return batch | {_IMAGE: _warp(batch[_IMAGE], matrix_Bx2x2)}


@dataclasses.dataclass(frozen=True)
class RandomScale(Transform):
    """Enlarges or shrinks column `image` (B, H, W, C) about its centre, bilinear; outside is zero.

    Attributes:
      low: smallest factor, above 0.
      high: largest factor, at least `low`; the factor is uniform between them.
    """

    low: float = 0.9
    high: float = 1.1

    def __post_init__(self):
        if not 0 < self.low <= self.high:
            raise ConfigError(
                f"RandomScale: low {self.low} and high {self.high} must be 0 < low <= high."
            )

    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """See `Transform.draw`."""
        return {"factor": rng.uniform(self.low, self.high, examples)}

    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """See `Transform.apply`."""
        # Divided: an output pixel asks where it comes from, and that is nearer when enlarged.
        matrix_Bx2x2 = np.eye(2) / drawn["factor"][:, None, None]
        return batch | {_IMAGE: _warp(batch[_IMAGE], matrix_Bx2x2)}


def _mirrored(image: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Returns a copy of `image` (B, H, W, C) with those of `mirror` (B,) bool left to right."""
    # A copy in rows, whatever the order was: the view below needs that.
    image = np.array(image, order="C")
    # A pixel as one item of C bytes instead of C items: moved at once.
    pixels = image.view(np.dtype((np.void, image.shape[-1] * image.itemsize)))
    pixels[mirror] = pixels[mirror, :, ::-1]
    return image


def _pad(image: np.ndarray, p: int, reflect: bool) -> np.ndarray:
    """`np.pad` of H and W by p, about four times as fast."""
    b, h, w, c = image.shape
    padded = np.zeros((b, h + 2 * p, w + 2 * p, c), image.dtype)
    padded[:, p:-p, p:-p] = image
    if reflect:  # without the border itself; the columns second, so that they fill the corners
        padded[:, :p, p:-p] = image[:, p:0:-1]
        padded[:, -p:, p:-p] = image[:, -2 : -p - 2 : -1]
        padded[:, :, :p] = padded[:, :, 2 * p : p : -1]
        padded[:, :, -p:] = padded[:, :, -p - 2 : -2 * p - 2 : -1]
    return padded


def _warp(image: np.ndarray, matrix_Bx2x2: np.ndarray) -> np.ndarray:
    """Samples `image` (B, H, W, C) at matrix @ (y, x), both from the centre; bilinear."""
    b, h, w, c = image.shape
    # Where each output pixel comes from, in pixels (y, x) of the input.
    centre = np.array([h - 1, w - 1], np.float32) / 2
    grid_Nx2 = np.indices((h, w), np.float32).reshape(2, -1).T - centre
    at_BxNx2 = grid_Nx2 @ matrix_Bx2x2.astype(np.float32).transpose(0, 2, 1) + centre
    # One pixel of zeros around takes the place of a test at the border.
    at_BxNx2 = np.clip(at_BxNx2 + 1, 0, np.array([h + 1, w + 1], np.float32))
    # The upper left of the four pixels around, of which all exist: at the far border, one less.
    corner_BxNx2 = np.minimum(np.floor(at_BxNx2), np.array([h, w], np.float32))
    fy, fx = np.moveaxis(at_BxNx2 - corner_BxNx2, -1, 0)  # (B, N) each
    y, x = np.moveaxis(corner_BxNx2.astype(np.intp), -1, 0)
    # The corner's place in the flat padded plane: h + 2 rows a picture, w + 2 pixels a row.
    first = (np.arange(b)[:, None] * (h + 2) + y) * (w + 2) + x
    padded = _pad(image, 1, reflect=False)
    warped = np.empty((b, h * w, c), image.dtype)
    for channel in range(c):  # planes, because NumPy is slow on a last dimension of 3
        plane = padded[..., channel].ravel()
        top = _between(plane.take(first), plane.take(first + 1), fx)
        bottom = _between(plane.take(first + w + 2), plane.take(first + w + 3), fx)
        values = _between(top, bottom, fy)
        # Of whole numbers a cast alone would round down, and darken.
        warped[..., channel] = values if image.dtype.kind == "f" else np.rint(values)
    return warped.reshape(b, h, w, c)


def _between(start: np.ndarray, stop: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Linear interpolation: `start` at share 0, `stop` at share 1."""
    return start * (1 - share) + stop * share
