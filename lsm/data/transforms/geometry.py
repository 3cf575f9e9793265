"""Flips, crops, rotations and scales: vectorised NumPy on pictures of any dtype, which stays."""

import dataclasses

import numpy as np

from lsm.data.dataset import Columns
from lsm.data.sampling import coins
from lsm.data.transforms.base import IMAGE, Places, Transform, pictures
from lsm.errors import ConfigError


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
        return batch | {IMAGE: _mirrored(pictures(self, batch), drawn["mirror"])}


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
        return batch | {IMAGE: _mirrored(pictures(self, batch), drawn["mirror"])}


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
        image = pictures(self, batch)
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
        return batch | {IMAGE: windows[np.arange(b), y, x * c].reshape(b, h, w, c)}


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
        return batch | {IMAGE: _warp(pictures(self, batch), matrix_Bx2x2)}


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
        return batch | {IMAGE: _warp(pictures(self, batch), matrix_Bx2x2)}


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
