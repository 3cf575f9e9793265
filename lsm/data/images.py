"""Pictures from bytes or files to uint8 arrays, with Pillow."""

import contextlib
import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lsm.data import png
from lsm.errors import ConfigError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
CHANNELS = tuple(_MODES)
"""How many channels a picture may have."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
"""Endings, in lower case, of the files that count as pictures in a folder."""

_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""By the orientation in EXIF, how Pillow calls what sets a picture upright."""


def decode(
    picture: bytes | pathlib.Path,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    upright: bool = True,
) -> np.ndarray:
    """Returns a picture (height, width, channels) uint8, resized to `size` if given.

    Resizing changes the aspect ratio where it must, and is bilinear over the area that becomes one
    pixel (antialiased). Of an animation it is the first picture.

    Args:
      picture: an encoded picture, or the path of one.
      channels: 1 (grey), 3 (RGB) or 4 (RGB and alpha); converted to from whatever is stored.
      size: (height, width) of the result; None keeps the picture's own.
      upright: whether it is turned as its EXIF says, as a viewer shows it; else it is as stored.

    Raises:
      ValueError: it is damaged, no picture, too large, or of 32 bits a pixel; one line.
    """
    from PIL import Image

    with _opened(picture) as image:
        image.load()  # by which Pillow turns a TIFF itself
        if upright and (turn := _TURNS.get(_orientation(image))):
            image = image.transpose(Image.Transpose[turn])
        image = _of_8_bits(image)
        # Before resizing: Pillow does not interpolate pictures with a palette.
        if image.mode != _MODES[channels]:
            image = image.convert(_MODES[channels])
        # Pillow says (width, height).
        if size is not None and image.size != (size[1], size[0]):
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


def size_of(picture: bytes) -> tuple[int, int]:
    """Returns (height, width) of a picture as `decode` gives it; raises its ValueError."""
    with _opened(picture) as image:
        sides = image.height, image.width
        return sides[::-1] if _orientation(image) in (5, 6, 7, 8) else sides


def check(picture: pathlib.Path) -> None:
    """Raises the ValueError of `decode`, as far as the beginning of the file tells."""
    with _opened(picture) as image:
        _check_bits(image)


@contextlib.contextmanager
def _opened(picture: bytes | pathlib.Path) -> Iterator[Any]:
    """Opens a picture; what fails here, and in the block, becomes a ValueError of one line."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            yield image
    except UnidentifiedImageError as error:  # its text names an object in memory
        empty = isinstance(picture, pathlib.Path) and not picture.stat().st_size
        raise ValueError("it is empty" if empty else "it is no picture of a known kind") from error
    except Exception as error:  # Pillow raises any kind for a damaged file, and for a bomb
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def decode_all(
    pictures: Sequence[bytes],
    channels: int = 3,
    size: tuple[int, int] | None = None,
    upright: bool = True,
) -> Sequence[np.ndarray]:
    """Returns what `decode` does of each picture; small PNGs of one size in a third of the time."""
    pixels = png.decode(pictures, channels, size)  # of those that have no EXIF
    if pixels is not None:
        return pixels
    return [decode(picture, channels, size, upright) for picture in pictures]


def _orientation(image: Any) -> int:
    """1 to 8 as EXIF numbers them; 1 where it says nothing, or nothing that can be read."""
    from PIL import ExifTags, Image

    try:
        # Of the base class: a PNG's own would decode the picture first.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises any kind for damaged EXIF; the picture is none the worse
        return 1


def _of_8_bits(image: Any) -> Any:
    """Returns a Pillow image in a mode that it converts to others without loss or warning."""
    from PIL import Image

    _check_bits(image)
    if image.mode.startswith("I;16"):
        # The upper 8 of 16 bits, as Pillow takes of colours; of greys it would clip at 255.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    # Pillow warns of a palette with grades of transparency unless they are asked for.
    return image.convert("RGBA") if "transparency" in image.info and image.mode == "P" else image


def _check_bits(image: Any) -> None:
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are of 32 bits ({image.mode}), of which nobody says which is white; "
            "store it with 8 or 16"
        )


def ragged(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Returns pictures of any sizes as an object array (N,), of one size by chance too."""
    column = np.empty(len(pictures), object)
    for row, picture in enumerate(pictures):
        column[row] = picture
    return column


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
    pair = (size, size) if isinstance(size, int) else size if isinstance(size, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ConfigError(f"{field}: {size!r} is not a size; give N or (height, width), above 0.")
    return tuple(pair)
