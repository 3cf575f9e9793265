"""Devices arranged along named axes, and what is laid over them.

Models use `ways` and `constrain` (`axes`) and say what they can do in a `Layout` (`rules`); the
mesh itself, the shardings of a state (`sharding`) and of a batch (`rows`) and the compiled
function (`jit`) are the business of who calls them.
"""

from lsm.mesh.axes import (
    AXES,
    BATCH_AXES,
    Entry,
    axis_names,
    constrain,
    product,
    split_rows,
    unplaced,
    ways,
)
from lsm.mesh.jit import jit
from lsm.mesh.offload import in_device_memory, in_host_memory, offloaded
from lsm.mesh.rows import batch_sharding, batch_ways, local_rows, place
from lsm.mesh.rules import Fsdp, Layout, Rule
from lsm.mesh.sharding import (
    Mesh,
    check_axes,
    local_bytes,
    make_mesh,
    replicated,
    shard,
    table,
    used_axes,
)

__all__ = [
    "AXES",
    "BATCH_AXES",
    "Entry",
    "Fsdp",
    "Layout",
    "Mesh",
    "Rule",
    "axis_names",
    "batch_sharding",
    "batch_ways",
    "check_axes",
    "constrain",
    "in_device_memory",
    "in_host_memory",
    "jit",
    "local_bytes",
    "local_rows",
    "make_mesh",
    "offloaded",
    "place",
    "product",
    "replicated",
    "shard",
    "split_rows",
    "table",
    "unplaced",
    "used_axes",
    "ways",
]
