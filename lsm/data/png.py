"""Many small PNG pictures at once: most of the time that each takes a library goes into opening it.

Of the PNG specification (https://www.w3.org/TR/png-3/) only what datasets are made of: 8 bits a
channel, no palette, not interlaced, nothing but pixels. Everything else is left to Pillow.
"""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np

_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_DATA = 33  # bytes of signature and header
_COLOURS = {1: 0, 3: 2, 4: 6}  # channels: their number in the header
_LARGEST = 128 * 128  # pixels; above, nothing is gained
_BYTES = 2**18  # decoded at a time; larger buffers are mapped anew each time, page by page


def decode(
    pictures: Sequence[bytes], channels: int, size: tuple[int, int] | None = None
) -> np.ndarray | None:
    """Returns PNG pictures of one (height, width) as uint8 (N, height, width, channels).

    None where one is larger, of another size or kind, or damaged: then each is to be decoded alone,
    which works, or tells what is wrong.

    Args:
      pictures: N encoded pictures.
      channels: 1 (grey), 3 (RGB) or 4 (RGB and alpha), which they must have.
      size: (height, width) that they must have; None allows any.
    """
    try:
        height, width = _size(pictures[0], channels)
        if (size or (height, width)) != (height, width) or height * width > _LARGEST:
            return None
        pixels = np.empty((len(pictures), height, width, channels), np.uint8)
        some = max(1, _BYTES // (height * width * channels))
        for start in range(0, len(pictures), some):
            part = [_rows(picture, pictures[0]) for picture in pictures[start : start + some]]
            if {len(rows) for rows in part} != {height * (1 + width * channels)}:
                return None
            pixels[start : start + some] = _decode_as_one(part, height, width, channels)
        return pixels
    except (ValueError, IndexError, OSError, struct.error, zlib.error):
        return None


def _size(picture: bytes, channels: int) -> tuple[int, int]:
    """Returns (height, width) of a picture of the kind that is read here."""
    if picture[:16] != _START:
        raise ValueError("no PNG")
    width, height, *kind = struct.unpack_from(">IIBBBBB", picture, 16)
    # Bits, colours; one way to compress and one to filter; not interlaced.
    if kind != [8, _COLOURS[channels], 0, 0, 0]:
        raise ValueError("another kind of PNG")
    return height, width


def _rows(picture: bytes, first: bytes) -> bytes:
    """Returns the filtered rows of a picture that begins as the first one does."""
    if picture[:_DATA] != first[:_DATA]:
        raise ValueError("another size or kind")
    place, data = _DATA, []
    while True:
        size, kind = struct.unpack_from(">I4s", picture, place)
        end = place + 8 + size
        (check,) = struct.unpack_from(">I", picture, end)
        if check != zlib.crc32(picture[place + 4 : end]):
            raise ValueError("damaged")
        if kind == b"IEND":
            return zlib.decompress(b"".join(data))
        if kind != b"IDAT":
            raise ValueError("more than pixels")
        data.append(picture[place + 8 : end])
        place = end + 4


def _decode_as_one(filtered: Sequence[bytes], height: int, width: int, channels: int) -> np.ndarray:
    """Returns the pixels (N, height, width, channels) of the filtered rows of N pictures.

    They are decoded as one picture, each above the next. A filter predicts a row from the one above
    it, and at the top of a picture from zeros: so there is a row of zeros below each.
    """
    from PIL import Image

    zeros = bytes(1 + width * channels)
    header = struct.pack(
        ">IIBBBBB", width, len(filtered) * (height + 1), 8, _COLOURS[channels], 0, 0, 0
    )
    rows = zlib.compress(b"".join(part + zeros for part in filtered), 0)
    png = _START[:8] + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        pixels = np.asarray(image)
    return pixels.reshape(len(filtered), height + 1, width, channels)[:, :height]


def _chunk(kind: bytes, content: bytes) -> bytes:
    size, check = (struct.pack(">I", n) for n in (len(content), zlib.crc32(kind + content)))
    return size + kind + content + check
