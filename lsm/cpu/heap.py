"""The C heap of a process that computes on its CPU."""

import ctypes
import platform

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h


def keep_memory() -> None:
    """Lets glibc keep freed memory for the next step; does nothing with another C library.

    XLA's temporary buffer is one block; above 32 MiB glibc maps it anew for every step, and each
    of its pages faults again: a fifth of the time of a small GPT's step.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # Blocks below 1 GiB come from the heap; its free end goes back from 2 GiB on, the largest int.
    libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
