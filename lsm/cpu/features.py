"""How many processors there are, and what they can do, as Linux tells it."""

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})
"""Flags of instructions for bfloat16: products on x86, conversions alone there, products on Arm."""


def cores() -> int:
    """Returns the number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def emulates_bfloat16() -> bool:
    """Returns whether no processor here has instructions for bfloat16; False where nobody tells."""
    told = _flags()
    return bool(told) and _BFLOAT16.isdisjoint(told)


def avx2_alone() -> bool:
    """Returns whether the processors have AVX2 and not AVX-512; False where nobody tells."""
    return "avx2" in (told := _flags()) and "avx512f" not in told


def _flags() -> frozenset[str]:
    """Returns the names of all instructions that some processor here has; empty: nobody tells."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:  # not Linux
        return frozenset()
    named = [line.partition(":") for line in lines]
    told = [words for name, _, words in named if name.strip() in ("flags", "Features")]
    return frozenset(" ".join(told).split())
