"""Many small PNG pictures at once: what costs a library most of its time is to open each.

Of the PNG specification (https://www.w3.org/TR/png-3/) only what data sets are made of: 8 bits a
channel, no palette, not interlaced, nothing but pixels. Everything else is left to Pillow. The
filters of all rows are undone together, a diagonal of all pictures at a time.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_DATA = 33  # bytes of signature and header
_COLOURS = {1: 0, 3: 2, 4: 6}  # channels: their number in the header
_LARGEST = 64 * 64  # pixels; from there on Pillow is as fast
_BYTES = 2**19  # decoded at a time: few enough for the cache of a CPU, many for NumPy


def decode(
    pictures: Sequence[bytes], channels: int, size: tuple[int, int] | None = None
) -> np.ndarray | None:
    """Returns PNG pictures of one (height, width) as uint8 (N, height, width, channels).

    None where one is larger, of another size or kind, or damaged: then a general decoder reads
    them, or tells what is wrong.

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
            rows = np.frombuffer(b"".join(part), np.uint8)
            _unfilter(rows.reshape(len(part), height, -1), pixels[start : start + some])
        return pixels
    except (ValueError, IndexError, struct.error, zlib.error):
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


def _unfilter(rows: np.ndarray, pixels: np.ndarray) -> None:
    """Undoes the filters of rows (N, height, 1 + width * channels) into pixels (N, h, w, c).

    A pixel is stored as its difference from a prediction, made from the pixels left, above, and
    above left. Those on a diagonal do not depend on each other, so pixel (x, y) is put at
    [x + y + 2, y + 1], with zeros around the picture, and the diagonals are done one by one.
    """
    n, height, width, channels = pixels.shape
    filters = rows[:, :, 0].T[:, None]  # (height, 1, N): none, sub, up, average, Paeth
    if filters.max() > 4:
        raise ValueError("unknown filter")
    has_left, has_up, has_corner, average = (
        np.isin(filters, kinds).astype(np.int16) for kinds in ((1, 3, 4), (2, 3, 4), 4, 3)
    )
    stored = rows[:, :, 1:].reshape(pixels.shape)
    diagonals = np.zeros((width + height + 1, height + 1, channels, n), np.uint8)
    for y in range(height):
        diagonals[y + 2 : y + 2 + width, y + 1] = stored[:, y].transpose(1, 2, 0)
    for k in range(2, width + height + 1):
        y = slice(max(0, k - 1 - width), min(height, k - 1))
        here = slice(y.start + 1, y.stop + 1)
        left = diagonals[k - 1, here] * has_left[y]
        up = diagonals[k - 1, y] * has_up[y]
        # Without the corner, Paeth's prediction is the one pixel that the filter has.
        predicted = _paeth(left, up, diagonals[k - 2, y] * has_corner[y])
        predicted += average[y] * ((left + up >> 1) - predicted)
        diagonals[k, here] += predicted.astype(np.uint8)  # modulo 256
    for y in range(height):
        pixels[:, y] = diagonals[y + 2 : y + 2 + width, y + 1].transpose(2, 0, 1)


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Returns, of three pixels, the one next to left + up - corner."""
    by_up, by_left = up - corner, left - corner
    off_left, off_up, off_corner = np.abs(by_up), np.abs(by_left), np.abs(by_up + by_left)
    # Products, for they are five times as fast as np.where.
    nearest = corner + (off_up <= off_corner) * by_up
    return nearest + (off_left <= np.minimum(off_up, off_corner)) * (left - nearest)
