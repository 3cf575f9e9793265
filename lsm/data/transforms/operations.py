"""Changes of one picture by Pillow, as torchvision calls it, and of a batch one by one.

Measured on one core, Pillow takes as long as NumPy on whole batches at 32 x 32, and less at 224.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lsm.data import images
from lsm.data.dataset import Columns
from lsm.data.transforms.base import IMAGE, image_of
from lsm.errors import DataError

Picture = Any
"""`PIL.Image.Image`, which is imported where it is used."""


def each(
    transform: Any,
    batch: Columns,
    change: Callable[..., Picture],
    *arguments: Iterable,
) -> Columns:
    """Returns the batch with `change(picture, ...)` for each picture of column `image`.

    Args:
      transform: named where there is an error.
      batch: `image` is uint8 (B, H, W, 1 or 3), or holds B such pictures of different sizes.
      change: from a Pillow image, and its values of `arguments`, to another.
      arguments: one value a picture each.

    Raises:
      DataError: the pictures are of another kind.
    """
    from PIL import Image

    changed = []
    for pixels, *values in zip(image_of(transform, batch), *arguments, strict=True):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
            raise DataError(
                f"{type(transform).__name__}: pictures are {pixels.dtype} {pixels.shape}; uint8 "
                "(height, width, 1 or 3) is needed."
            )
        grey = pixels.shape[-1] == 1
        picture = change(Image.fromarray(pixels[..., 0] if grey else pixels), *values)
        changed.append(np.asarray(picture)[..., None] if grey else np.asarray(picture))
    if batch[IMAGE].dtype != object:
        return batch | {IMAGE: np.stack(changed) if changed else batch[IMAGE].copy()}
    return batch | {IMAGE: images.ragged(changed)}


def brightness(picture: Picture, factor: float) -> Picture:
    """Returns the picture, times a factor: 0 is black, 1 as it is."""
    from PIL import ImageEnhance

    return ImageEnhance.Brightness(picture).enhance(factor)


def contrast(picture: Picture, factor: float) -> Picture:
    """Returns the picture, its distance to its mean grey times a factor."""
    from PIL import ImageEnhance

    return ImageEnhance.Contrast(picture).enhance(factor)


def saturation(picture: Picture, factor: float) -> Picture:
    """Returns the picture, its distance to its own grey times a factor."""
    from PIL import ImageEnhance

    return ImageEnhance.Color(picture).enhance(factor)


def sharpness(picture: Picture, factor: float) -> Picture:
    """Returns the picture, its distance to a smoothed one times a factor."""
    from PIL import ImageEnhance

    return ImageEnhance.Sharpness(picture).enhance(factor)


def hue(picture: Picture, turn: float) -> Picture:
    """Returns the picture, its hues turned by a share of the circle, -0.5 to 0.5; grey stays."""
    from PIL import Image

    if picture.mode == "L":
        return picture
    hues, *others = picture.convert("HSV").split()
    turned = np.asarray(hues) + np.int32(turn * 255).astype(np.uint8)  # uint8 goes round
    return Image.merge("HSV", (Image.fromarray(turned), *others)).convert("RGB")


def posterize(picture: Picture, bits: int) -> Picture:
    """Returns the picture, the upper `bits` of each value kept."""
    from PIL import ImageOps

    return ImageOps.posterize(picture, bits)


def solarize(picture: Picture, threshold: float) -> Picture:
    """Returns the picture, values of `threshold` or more inverted."""
    from PIL import ImageOps

    return ImageOps.solarize(picture, threshold)


def autocontrast(picture: Picture) -> Picture:
    """Returns the picture, each channel stretched to 0 to 255."""
    from PIL import ImageOps

    return ImageOps.autocontrast(picture)


def equalize(picture: Picture) -> Picture:
    """Returns the picture, each channel's histogram made flat."""
    from PIL import ImageOps

    return ImageOps.equalize(picture)


def rotate(picture: Picture, degrees: float) -> Picture:
    """Returns the picture, turned counter-clockwise about its centre; the nearest pixel, or 0."""
    return picture.rotate(degrees)


def shear_x(picture: Picture, slope: float) -> Picture:
    """Returns the picture, row y moved left by `slope * y`; the nearest pixel, or 0."""
    return _affine(picture, 1, slope, 0, 0, 1, 0)


def shear_y(picture: Picture, slope: float) -> Picture:
    """Returns the picture, column x moved up by `slope * x`; the nearest pixel, or 0."""
    return _affine(picture, 1, 0, 0, slope, 1, 0)


def translate_x(picture: Picture, pixels: float) -> Picture:
    """Returns the picture, moved right by whole pixels, towards 0; what comes in is 0."""
    return _affine(picture, 1, 0, -math.trunc(pixels), 0, 1, 0)


def translate_y(picture: Picture, pixels: float) -> Picture:
    """Returns the picture, moved down by whole pixels, towards 0; what comes in is 0."""
    return _affine(picture, 1, 0, 0, 0, 1, -math.trunc(pixels))


def resized_crop(
    picture: Picture, top: int, left: int, height: int, width: int, size: tuple[int, int]
) -> Picture:
    """Returns a window of the picture, resized to (height, width), bilinear with antialiasing."""
    from PIL import Image

    window = picture.crop((left, top, left + width, top + height))
    return window.resize(size[::-1], Image.Resampling.BILINEAR)


def resized(picture: Picture, shorter: int) -> Picture:
    """Returns the picture, its shorter side of so many pixels, bilinear with antialiasing."""
    from PIL import Image

    least = min(picture.size)
    # The longer side rounded down, as torchvision does.
    size = [shorter if side == least else shorter * side // least for side in picture.size]
    return picture.resize(size, Image.Resampling.BILINEAR)


def _affine(picture: Picture, *matrix: float) -> Picture:
    from PIL import Image

    return picture.transform(picture.size, Image.Transform.AFFINE, matrix)
