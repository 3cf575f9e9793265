"""Pictures side by side, as one PNG."""

import math
from collections.abc import Sequence

import numpy as np

from lsm.data import images

_WIDTH, _LINE = 128, 14  # pixels that a caption has at least, and its height


def sheet(pictures: Sequence[np.ndarray], captions: Sequence[str] = ()) -> bytes:
    """Returns pictures side by side as PNG, a pixel of white between them.

    Args:
      pictures: uint8 (height, width, 1 or 3) each, of any sizes.
      captions: a line to stand under each; what is too long is cut off. Pictures that are narrower
        than a few words are enlarged, their pixels whole.
    """
    if captions:
        times = -(-_WIDTH // max(picture.shape[1] for picture in pictures))
        pictures = [picture.repeat(times, 0).repeat(times, 1) for picture in pictures]
    height, width = (max(picture.shape[i] for picture in pictures) for i in (0, 1))
    high, wide = height + 1 + (_LINE if captions else 0), width + 1
    across = math.ceil(math.sqrt(len(pictures)))
    pixels = np.full((-(-len(pictures) // across) * high, across * wide, 3), 255, np.uint8)
    corners = [(number // across * high, number % across * wide) for number in range(len(pictures))]
    for picture, (top, left) in zip(pictures, corners, strict=True):
        pixels[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    for caption, (top, left) in zip(captions, corners, strict=False):
        line = _line(caption, width)
        pixels[top + height : top + height + _LINE, left : left + width] = line[..., None]
    return images.encode_png(pixels)


def _line(text: str, width: int) -> np.ndarray:
    """Returns a line of text, black on white, uint8 (_LINE, width)."""
    from PIL import Image, ImageDraw

    line = Image.new("L", (width, _LINE), 255)
    draw = ImageDraw.Draw(line)
    # What Pillow's font without FreeType has not it would raise an error for.
    if not hasattr(draw.getfont(), "getmask2"):
        text = text.encode("latin-1", "replace").decode("latin-1")
    draw.text((1, 0), text, fill=0)
    return np.asarray(line)
