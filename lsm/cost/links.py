"""How long collectives take at best, over the links between chips and the network between slices.

The formulas are those of rings and tori in Austin et al., "How to Scale Your Model" (2025),
chapters 3 and 5: bandwidth alone, and a microsecond a hop where that is longer.
"""

from lsm.cost.chips import Chip

HOP = 1e-6
"""Seconds that a message takes to the next chip."""


def collective_seconds(
    kind: str, size: float, group: int, slices: int, torus: tuple[tuple[int, bool], ...], chip: Chip
) -> float:
    """Returns how long one collective takes when nothing disturbs it.

    Args:
      kind: all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute.
      size: bytes of the gathered or the reduced whole; of what is sent for the other kinds.
      group: devices in a group.
      slices: slices (of GPUs: nodes) that a group spans.
      torus: (extent, whether it closes to a ring) of the group along each physical axis.
      chip: gives the bandwidths.
    """
    if group <= 1:
        return 0.0
    within = group // slices
    ways = sum(2 if closed else 1 for _, closed in torus) or 1
    bandwidth = min(ways, chip.links) * chip.link_bandwidth
    across = chip.dcn_bandwidth / chip.devices_per_chip  # of one device: its neighbour sends too
    slowest = across if slices > 1 else chip.link_bandwidth
    longest, closed = max(torus, default=(within, True))
    if kind == "collective-permute":
        return size / slowest
    if kind == "all-to-all" and chip.clock is None:  # a switch: all pairs at once
        return size * (group - 1) / group / slowest
    if kind == "all-to-all":
        inside = size * longest / (4 if closed else 2) / (2 * chip.link_bandwidth)
        return inside + size * (slices - 1) / slices / across
    rounds = 2 if kind == "all-reduce" else 1
    inside = rounds * size * (within - 1) / within / bandwidth
    inside = max(inside, rounds * HOP * (within > 1) * longest / (2 if closed else 1))
    outside = rounds * size / within * (slices - 1) / slices / across
    return inside + outside
