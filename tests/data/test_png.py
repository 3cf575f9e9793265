"""Many pictures decoded as one: the same bits as Pillow's of each, and Pillow's word on the rest."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lsm.data import images, png

RNG = np.random.default_rng(0)


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def filtered(pixels: np.ndarray, filters) -> bytes:
    """A PNG whose row y has the filter of the specification's table (9.1) `filters[y]`."""
    height, width, channels = pixels.shape
    x = np.zeros((height + 1, width + 1, channels), int)
    x[1:, 1:] = pixels
    rows = b""
    for y, kind in enumerate(filters, 1):
        a, b, c = x[y, :-1], x[y - 1, 1:], x[y - 1, :-1]
        p = a + b - c
        paeth = np.where(
            (abs(p - a) <= abs(p - b)) & (abs(p - a) <= abs(p - c)),
            a,
            np.where(abs(p - b) <= abs(p - c), b, c),
        )
        predicted = [0 * a, a, b, (a + b) // 2, paeth][min(kind, 4)]
        rows += bytes([kind]) + (x[y, 1:] - predicted).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    cut = len(compressed := zlib.compress(rows)) // 2  # in two chunks, as encoders may
    data = chunk(b"IDAT", compressed[:cut]) + chunk(b"IDAT", compressed[cut:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_filter_in_every_row(channels, monkeypatch):
    monkeypatch.setattr(png, "_BYTES", 1000)  # a few at a time
    pixels = RNG.integers(0, 256, (40, 5, 7, channels), np.uint8)
    stored = [filtered(picture, RNG.integers(0, 5, 5)) for picture in pixels]
    np.testing.assert_array_equal(png.decode(stored, channels), pixels)
    np.testing.assert_array_equal(png.decode(stored, channels, (5, 7)), pixels)
    assert png.decode(stored, channels, (7, 5)) is None


def test_other_kinds_are_left_to_pillow():
    pixels = RNG.integers(0, 256, (2, 5, 7, 3), np.uint8)
    good = [images.encode_png(picture) for picture in pixels]
    other = {
        "grey": images.encode_png(pixels[0, ..., :1]),
        "another size": images.encode_png(pixels[0, :4]),
        "16 bits": good[0][:24] + b"\x10" + good[0][25:],
        "palette": encoded(Image.fromarray(pixels[0]).quantize(), "png"),
        "with a chunk": good[0][:33] + chunk(b"tEXt", b"a\0b") + good[0][33:],
        "jpeg": encoded(Image.fromarray(pixels[0]), "jpeg"),
        "nothing": b"",
    }
    assert png.decode(good, 3) is not None
    for name, picture in other.items():
        assert png.decode([*good, picture], 3) is None, name
        assert png.decode([picture, *good], 3) is None, name
    mixed = images.decode_all([*good, other["grey"], other["with a chunk"]])
    grey = np.repeat(pixels[0, ..., :1], 3, axis=-1)
    np.testing.assert_array_equal(mixed, [*pixels, grey, pixels[0]])
    assert png.decode([], 3) is None and len(images.decode_all([])) == 0


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


PIXELS = RNG.integers(0, 256, (3, 6, 5, 3), np.uint8)
STORED = [filtered(picture, [4, 3, 2, 1, 0, 4]) for picture in PIXELS]


@given(st.integers(0, len(STORED[1])), st.binary(max_size=20))
def test_what_is_damaged_is_what_pillow_says_it_is(place, junk):
    damaged = [STORED[0], STORED[1][:place] + junk + STORED[1][place + len(junk) :], STORED[2]]
    try:
        expected = [images.decode(picture) for picture in damaged]
    except ValueError as error:
        with pytest.raises(ValueError) as told:
            images.decode_all(damaged)
        assert str(told.value) == str(error)
    else:
        decoded = images.decode_all(damaged)
        assert all(np.array_equal(*both) for both in zip(decoded, expected, strict=True))


@pytest.mark.parametrize("rows", [[4, 3, 2, 1, 0, 9], [0] * 5, [0] * 7])
def test_wrong_filters_and_wrong_numbers_of_rows(rows):
    picture = filtered(RNG.integers(0, 256, (len(rows), 5, 3), np.uint8), rows)
    header = STORED[0][:33]
    assert png.decode([STORED[0], header + picture[33:]], 3) is None
