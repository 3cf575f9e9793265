"""Pictures from bytes or files to uint8 arrays, with Pillow."""

import io
import pathlib

import numpy as np

from lsm.errors import ConfigError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""Endings, in lower case, of the files that count as pictures in a folder."""


def decode(
    picture: bytes | pathlib.Path, channels: int = 3, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns a picture (height, width, channels) uint8, resized to `size` if given.

    Resizing changes the aspect ratio where it must, and is bilinear over the area that becomes one
    pixel (antialiased).

    Args:
      picture: an encoded picture, or the path of one.
      channels: 1 (grey), 3 (RGB) or 4 (RGB and alpha); converted to from whatever is stored.
      size: (height, width) of the result; None keeps the picture's own.
    """
    from PIL import Image

    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
        if image.mode.startswith("I;16"):
            # The upper 8 of 16 bits, as Pillow takes of colours; of greys it would clip at 255.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        # Before resizing: Pillow does not interpolate pictures with a palette.
        if image.mode != _MODES[channels]:
            image = image.convert(_MODES[channels])
        # Pillow says (width, height).
        if size is not None and image.size != (size[1], size[0]):
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns a uint8 picture (height, width, 1 or 3) as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "png")
    return buffer.getvalue()


def as_size(size: int | tuple[int, int] | None, field: str) -> tuple[int, int] | None:
    """Returns `size` as (height, width); an int is a square, None stays None.

    Raises:
      ConfigError: it is not one or two positive numbers; names `field`.
    """
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ConfigError(f"{field}: {size!r} is not a size; give N or (height, width), above 0.")
    return pair
