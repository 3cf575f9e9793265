"""How often each instruction of a module runs: loops with their trip counts, calls, branches."""

import functools
import operator
import re
from collections.abc import Callable, Iterator

from launch.plan.costs import flops_of
from launch.plan.hlo import Computation, Instruction

LONGEST = 10**5
"""Turns, from which on a loop counts as one that cannot be read."""

_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")
_OPERATIONS = {
    **dict.fromkeys(_SAME, lambda x: x),
    **{"add": operator.add, "subtract": operator.sub},
    **{"LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge},
}


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
            yield from executed(max(one.branches, key=flops_of), times)
        elif one.op in ("call", "call-start", "async-start") and one.called:
            yield from executed(one.called, times)


def trip_count(loop: Instruction) -> int | None:
    """Returns how often a while loop turns, or None where it cannot be read.

    XLA's own `known_trip_count` is taken where it is written; else the loop's counter is run.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text)
    if known:
        return int(known[1])
    condition, body = loop.computation("condition").root, loop.computation("body").root

    @functools.cache
    def carried(turn: int, index: int) -> int:
        """The value of a place in the carry before a turn."""
        if turn == 0:  # what an argument is worth is not known: no place of {}
            return _value(loop.operands[0].operands[index], {}.__getitem__)
        return _value(body.operands[index], functools.partial(carried, turn - 1))

    try:
        for turn in range(LONGEST):
            if not _value(condition, functools.partial(carried, turn)):
                return turn
    except (LookupError, ValueError):  # it is not made of `_OPERATIONS` and whole numbers alone
        pass
    return None


def _value(one: Instruction, read: Callable[[int], int]) -> int:
    """Returns what a whole number is; `read` gives those of the carry, or of a fusion's arguments.

    Raises:
      LookupError: that is not known.
      ValueError: it is no whole number.
    """
    if one.op == "constant":
        return int(one.literal)
    if one.op in ("get-tuple-element", "parameter"):
        return read(int(one.attribute("index") or one.literal))
    if one.fused:
        return _value(one.fused.root, lambda n: _value(one.operands[n], read))
    values = [_value(operand, read) for operand in one.operands]
    return _OPERATIONS[one.attribute("direction") or one.op](*values)
