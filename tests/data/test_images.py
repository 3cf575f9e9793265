"""Pictures of every kind that Pillow opens, and of none."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lsm.data import images


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    """A PNG of a kind that Pillow does not write: of 16 bits a colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        size, check = (struct.pack(">I", n) for n in (len(content), zlib.crc32(name + content)))
        return size + name + content + check

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


SIXTEEN = np.array([0, 255, 256, 32768, 65279, 65535])
UPPER = [0, 0, 1, 128, 254, 255]


@pytest.mark.parametrize(("kind", "stored"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_keep_their_upper_8(kind, stored, channels):
    row = np.repeat(SIXTEEN[:, None], stored, axis=1).astype(">u2").tobytes()
    pixels = images.decode(png(6, 1, 16, kind, b"\0" + row), channels)
    assert pixels.shape == (1, 6, channels)
    for channel in range(min(channels, 3)):
        assert pixels[0, :, channel].tolist() == UPPER
    if channels == 4:
        assert pixels[0, :, 3].tolist() == (UPPER if stored in (2, 4) else [255] * 6)


@pytest.mark.parametrize(("mode", "order"), [("I;16", "<u2"), ("I;16B", ">u2")])
def test_16_bits_of_tiff(mode, order):
    image = Image.frombytes(mode, (6, 1), SIXTEEN.astype(order).tobytes())
    assert images.decode(encoded(image, "tiff"), 1)[0, :, 0].tolist() == UPPER


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_have_no_range_and_are_refused(mode):
    with pytest.raises(ValueError, match=f"^its pixels are of 32 bits \\({mode}\\), of which .*"):
        images.decode(encoded(Image.new(mode, (2, 1), 7), "tiff"), 1)


def test_two_values_are_black_and_white():
    image = Image.fromarray(np.array([[True, False]]))
    assert image.mode == "1"
    assert images.decode(encoded(image), 1)[..., 0].tolist() == [[255, 0]]
    assert images.decode(encoded(image), 3).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("transparency", [0, bytes([0, 128])])
def test_a_palette_gives_its_colours_whatever_is_transparent(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    stored = encoded(image, transparency=transparency)
    alpha = [0, 255 if transparency == 0 else 128]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.decode(stored, 3).tolist() == [[[255, 0, 0], [0, 255, 0]]]
        assert images.decode(stored, 1)[..., 0].tolist() == [[76, 150]]  # ITU-R 601-2
        assert images.decode(stored, 4)[..., 3].tolist() == [alpha]


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for kind, near in (("tiff", 0), ("jpeg", 3)):
        off = images.decode(encoded(image, kind), 3).astype(int) - [255, 0, 0]
        assert np.abs(off).max() <= near


def test_damaged_exif_turns_nothing():
    exif = b"Exif\0\0" + b"rubbish that is no header"
    stored = encoded(Image.new("RGB", (6, 4), "red"), "jpeg", exif=exif)
    assert images.decode(stored).shape == (*images.size_of(stored), 3) == (4, 6, 3)


def test_a_bomb_is_no_picture():
    stored = png(60_000, 60_000, 8, 0, bytes(10))  # 3.6 gigapixels, as its header says
    with pytest.raises(ValueError, match="3600000000 pixels"):
        images.decode(stored)


COLOURS = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
STORED = [encoded(COLOURS, kind) for kind in ("png", "jpeg", "bmp", "webp")]


@given(st.sampled_from(STORED), st.integers(0, 400), st.binary(max_size=30))
def test_what_is_damaged_is_a_picture_or_a_line(stored, place, junk):
    damaged = stored[:place] + junk + stored[place + len(junk) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert images.decode(damaged, size=(4, 4)).shape == (4, 4, 3)
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
