"""Many processes as one run: how they find each other, stay in touch, and stop together."""

from lsm.processes.start import (
    Cluster,
    detect,
    fail,
    finish,
    gather,
    initialize,
    is_first,
    others,
    share,
    wait_for_all,
)

__all__ = [
    "Cluster",
    "detect",
    "fail",
    "finish",
    "gather",
    "initialize",
    "is_first",
    "others",
    "share",
    "wait_for_all",
]
