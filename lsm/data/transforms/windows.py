"""Parts of pictures: cut out and resized, or painted over."""

import dataclasses

import numpy as np

from lsm.checks import require
from lsm.data import images
from lsm.data.dataset import Columns
from lsm.data.transforms import operations
from lsm.data.transforms.base import IMAGE, Transform, image_of, pictures
from lsm.errors import ConfigError, DataError

_TRIES = 10  # drawn for each picture: the size of a picture is known when it is there


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(Transform):
    """Cuts a window of random area and shape out of column `image` and resizes it.

    The augmentation of ImageNet (Szegedy et al. 2015, arXiv:1409.4842, section 6), as in
    torchvision: bilinear with antialiasing, and the middle of a picture where no window fits. Of
    uint8 with 1 or 3 channels, (B, H, W, C) or B pictures of different sizes: those of a source
    that resizes none are cut from what the file holds, in its own shape; where the source has
    resized them, the windows are those of the resized pictures.

    Attributes:
      size: of the result, N or (height, width).
      scale: least and most share of the picture's area, 0 to 1.
      ratio: least and most width over height, which is uniform in its logarithm.
    """

    size: int | tuple[int, int] = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self):
        _check_size(self)
        _check_ranges(self)

    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """See `Transform.draw`."""
        return _draw(rng, examples, self.scale, self.ratio)

    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """See `Transform.apply`."""
        sides = [picture.shape[:2] for picture in image_of(self, batch)]
        sides_Bx2 = np.array(sides).reshape(-1, 2)
        size = images.as_size(self.size, "RandomResizedCrop.size")
        window_Bx4, fits_B = _windows(sides_Bx2, drawn)
        window_Bx4 = np.where(fits_B[:, None], window_Bx4, _middle(sides_Bx2, self.ratio))

        def cut(picture: operations.Picture, window: np.ndarray) -> operations.Picture:
            return operations.resized_crop(picture, *window.tolist(), size)

        cropped = operations.each(self, batch, cut, window_Bx4)
        return cropped | {IMAGE: np.array([*cropped[IMAGE]], np.uint8)}


@dataclasses.dataclass(frozen=True)
class CenterCrop(Transform):
    """Cuts the middle out of column `image`: draws nothing, so that `Data.evaluate` takes it.

    Of uint8 with 1 or 3 channels, (B, H, W, C) or B pictures of different sizes.

    Attributes:
      size: of the result, N or (height, width).
      resize: before, pictures are resized so that their shorter side has this many pixels, bilinear
        with antialiasing; None leaves them as they are.
    """

    size: int | tuple[int, int] = 224
    resize: int | None = None

    def __post_init__(self):
        _check_size(self)
        require(self, resize="[1, inf)")

    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """See `Transform.draw`."""
        return {}

    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """See `Transform.apply`; raises DataError for pictures that are smaller than the crop."""
        cropped = operations.each(self, batch, self._cropped)
        return cropped | {IMAGE: np.array([*cropped[IMAGE]], np.uint8)}

    def _cropped(self, picture: operations.Picture) -> operations.Picture:
        if self.resize:
            picture = operations.resized(picture, self.resize)
        height, width = images.as_size(self.size, "CenterCrop.size")
        if picture.height < height or picture.width < width:
            raise DataError(
                f"CenterCrop: a picture of {picture.height} x {picture.width}; {height} x {width} "
                "or more is needed, or `resize`."
            )
        top, left = round((picture.height - height) / 2), round((picture.width - width) / 2)
        return picture.crop((left, top, left + width, top + height))


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
        image = pictures(self, batch).copy()
        _check_value(self, image)
        sides = np.array(image.shape[1:3])
        top_left = (drawn["centre"] * sides).astype(int) - self.size // 2
        starts = np.maximum(top_left, 0).tolist()  # slices of Python's ints are faster
        stops = np.minimum(top_left + self.size, sides).tolist()
        for picture, (y0, x0), (y1, x1) in zip(image, starts, stops, strict=True):
            picture[y0:y1, x0:x1] = self.value
        return batch | {IMAGE: image}


@dataclasses.dataclass(frozen=True)
class RandomErasing(Transform):
    """Sets a window of random area and shape of column `image` (B, H, W, C) to one value.

    Zhong et al. 2020, arXiv:1708.04896; as in torchvision, whose `ratio` is height over width, too.
    A picture in which no window fits stays as it is.

    Attributes:
      probability: of erasing in an example, 0 to 1.
      scale: least and most share of the picture's area, 0 to 1.
      ratio: least and most height over width, which is uniform in its logarithm.
      value: what it is filled with, in the units of the pictures, 0 to 255.
    """

    probability: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: int | float = 0

    def __post_init__(self):
        require(self, probability="[0, 1]", value="[0, 255]")
        _check_ranges(self)

    def draw(self, rng: np.random.Generator, examples: int) -> Columns:
        """See `Transform.draw`."""
        upright = (1 / self.ratio[1], 1 / self.ratio[0])
        erased = rng.random(examples) < self.probability
        return _draw(rng, examples, self.scale, upright) | {"erased": erased}

    def apply(self, batch: Columns, drawn: Columns) -> Columns:
        """See `Transform.apply`."""
        image = pictures(self, batch).copy()
        _check_value(self, image)
        sides_Bx2 = np.tile(image.shape[1:3], (len(image), 1))
        window_Bx4, fits_B = _windows(sides_Bx2, drawn, smaller=True)
        chosen = np.flatnonzero(fits_B & drawn["erased"])
        for row, (top, left, height, width) in zip(
            chosen, window_Bx4[chosen].tolist(), strict=True
        ):
            image[row, top : top + height, left : left + width] = self.value
        return batch | {IMAGE: image}


def _check_size(transform: RandomResizedCrop | CenterCrop) -> None:
    field = f"{type(transform).__name__}.size"
    if images.as_size(transform.size, field) is None:
        raise ConfigError(f"{field}: None given; N or (height, width) is needed.")


def _check_value(transform: Cutout | RandomErasing, image: np.ndarray) -> None:
    field, value = f"{type(transform).__name__}.value", transform.value
    if image.dtype.kind != "f" and np.array(value).astype(image.dtype) != value:
        raise ConfigError(f"{field}: {value} cannot be held by pictures of {image.dtype}.")


def _check_ranges(transform: RandomResizedCrop | RandomErasing) -> None:
    for field, most in (("scale", 1.0), ("ratio", np.finfo(float).max)):
        given = getattr(transform, field)
        try:
            low, high = given
            fits = 0 < low <= high <= most
        except (TypeError, ValueError):  # no pair, or not of numbers
            fits = False
        if not fits:
            told = "0 < low <= high" + (" <= 1" if most == 1 else "")
            kind = type(transform).__name__
            raise ConfigError(
                f"{kind}.{field}: {given} given; allowed: a pair (low, high), {told}."
            )


def _draw(
    rng: np.random.Generator,
    examples: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Columns:
    """Returns tries of windows: share of the area, width over height; and where, 0 to 1."""
    return {
        "share": rng.uniform(*scale, (examples, _TRIES)),
        "ratio": np.exp(rng.uniform(*np.log(ratio), (examples, _TRIES))),
        "place": rng.random((examples, 2)),
    }


def _windows(
    sides_Bx2: np.ndarray, drawn: Columns, smaller: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (top, left, height, width), (B, 4), of the first try that fits, and if one does.

    Args:
      sides_Bx2: height and width of each picture.
      drawn: what `_draw` returned.
      smaller: whether a window must be smaller than the picture, in both sides.
    """
    area_BxN = sides_Bx2.prod(1, keepdims=True) * drawn["share"]
    tries = np.sqrt([area_BxN / drawn["ratio"], area_BxN * drawn["ratio"]])
    tries_BxNx2 = np.rint(np.moveaxis(tries, 0, -1)).astype(int)
    fits_BxN = ((tries_BxNx2 > 0) & (tries_BxNx2 + smaller <= sides_Bx2[:, None])).all(-1)
    window_Bx2 = tries_BxNx2[np.arange(len(sides_Bx2)), fits_BxN.argmax(1)]
    corner_Bx2 = (drawn["place"] * (sides_Bx2 - window_Bx2 + 1)).astype(int)
    return np.concatenate([corner_Bx2, window_Bx2], axis=1), fits_BxN.any(1)


def _middle(sides_Bx2: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """Returns the largest windows in the middle whose width over height is allowed, (B, 4)."""
    height_B, width_B = sides_Bx2.T
    window_Bx2 = np.stack(
        [
            np.minimum(height_B, np.rint(width_B / ratio[0])),
            np.minimum(width_B, np.rint(height_B * ratio[1])),
        ],
        axis=1,
    ).astype(int)
    return np.concatenate([(sides_Bx2 - window_Bx2) // 2, window_Bx2], axis=1)
