"""How often each instruction of a module runs: loops with their trip counts, calls, branches."""

import re
from collections.abc import Iterator

from launch.plan.costs import flops
from launch.plan.hlo import Computation, Instruction

_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")
_ENDS = {"LT": 0, "LE": 1, "GT": 0, "GE": -1}
"""How far behind the limit a counter stops that is compared with it so."""


def executed(computation: Computation, times: int = 1) -> Iterator[tuple[Instruction, int]]:
    """Yields (instruction, how often it runs), given how often the computation does.

    Loops of unknown length turn once. Instructions within fusions are not listed: a fusion runs as
    one. Of a conditional's branches the one with most FLOPs runs. What an async-start wraps is
    listed in its place.
    """
    for one in computation.instructions.values():
        yield one, times
        if one.op == "while":
            turns = trip_count(one)
            yield from executed(one.computation("body"), times * (1 if turns is None else turns))
        elif one.op == "conditional":
            yield from executed(max(one.branches, key=_work), times)
        elif one.op in ("call", "call-start", "async-start") and one.called:
            yield from executed(one.called, times)


def _work(branch: Computation) -> float:
    """Returns the FLOPs of all that a branch runs."""
    return sum(times * flops(one) for one, times in executed(branch))


def trip_count(loop: Instruction) -> int | None:
    """Returns how often a while loop turns: XLA's own count, or by its counter; None if unread."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text):
        return int(known[1])
    condition, body = (loop.computation(name).root for name in ("condition", "body"))
    try:
        begin = loop.operands[0].operands
        (place, offset), (bound, limit) = map(_sum, condition.operands)
        if bound is not None and _sum(body.operands[bound]) == (bound, 0):  # carried along
            bound, first = _sum(begin[bound])
            limit += first
        start, step = _sum(begin[place]), _sum(body.operands[place])
        if bound is not None or start[0] is not None or step[0] != place:
            return None
        stop = limit - offset + _ENDS[condition.attribute("direction")]
        return len(range(start[1], stop, step[1]))
    except (LookupError, TypeError, ValueError):  # not made of sums of whole numbers
        return None


def _sum(one: Instruction) -> tuple[int | None, int]:
    """Returns (place in the carry or None, number) where a value is the sum of these."""
    if one.op == "constant":
        return None, int(one.literal)
    if one.op == "get-tuple-element":
        return int(one.attribute("index")), 0
    if one.op in _SAME:
        return _sum(one.operands[0])
    (place, x), (other, y) = map(_sum, one.operands)
    if one.op != "add" or None not in (place, other):
        raise ValueError(one.text)
    return (other if place is None else place), x + y
