"""CRC-32C (Castagnoli) of many pieces at once, as TFRecord files have it.

The register after a message is linear in its bits. So a message is cut into lanes, all of which go
through the table at the same time, word by word, and are then put together: lanes before the last
count as if so many zeros followed. Zeros in front of a message change nothing, which pads it.
"""

import functools
from collections.abc import Sequence

import numpy as np

_POLYNOMIAL = 0x82F63B78  # of Castagnoli, lowest bit first
_ONES = np.uint32(0xFFFFFFFF)


def masked(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the masked checksum (N,) uint32 of each piece, uint8 (bytes,), as TFRecord stores it.

    https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
    """
    crc = crc32c(pieces)
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)


def crc32c(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Returns CRC-32C (N,) uint32 of each piece, uint8 (bytes,)."""
    sizes = np.array([len(piece) for piece in pieces], np.int64)
    longest = int(sizes.max(initial=0))
    # About as many words in a lane as lanes in the longest piece: the two loops below.
    lane = 4 << max(0, int(longest**0.5).bit_length() - 1)
    lanes = -(-sizes // lane)
    ends = np.cumsum(lanes) * lane
    content = np.zeros(int(lanes.sum()) * lane, np.uint8)
    for piece, end in zip(pieces, ends.tolist(), strict=True):
        content[end - len(piece) : end] = piece
        # The register begins with ones, which is to say that the first four bytes are inverted.
        content[end - len(piece) : end][:4] ^= 255
    register = np.zeros(len(content) // lane, np.uint32)
    for word in np.ascontiguousarray(content.view("<u4").reshape(-1, lane // 4).T):
        register = _through(_zeros(4), register ^ word)
    crc = np.zeros(len(pieces), np.uint32)
    for place in range(int(lanes.max(initial=0)), 0, -1):
        there = np.flatnonzero(lanes >= place)
        its = register[ends[there] // lane - place]
        crc[there] = _through(_zeros(lane), crc[there]) ^ its
    # Of fewer than four bytes, the other ones of the register are left, shifted.
    short = np.flatnonzero(sizes < 4)
    crc[short] ^= _ONES >> (8 * sizes[short]).astype(np.uint32)
    return crc ^ _ONES


def _through(tables: np.ndarray, register: np.ndarray) -> np.ndarray:
    """The register (N,) after the zeros that the tables (4, 256) stand for."""
    after = tables[0][register & np.uint32(255)]
    for byte in (1, 2, 3):
        after = after ^ tables[byte][(register >> np.uint32(8 * byte)) & np.uint32(255)]
    return after


@functools.cache
def _zeros(count: int) -> np.ndarray:
    """Tables (4, 256): what `count` zeros, a power of 2, make of each byte of the register."""
    if count > 1:
        half = _zeros(count // 2)
        return _through(half, half)
    register = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    for _ in range(8):
        low = register & np.uint32(1)
        register = (register >> np.uint32(1)) ^ (low * np.uint32(_POLYNOMIAL))
    return register
