"""How often each instruction of a module runs: loops with their trip counts, calls, branches."""

import functools
import operator
import re
from collections.abc import Callable, Iterator

from launch.plan.costs import computation_flops
from launch.plan.hlo import Computation, Instruction, Module

LONGEST = 10**5
"""Turns, from which on a loop counts as one that cannot be read."""

_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")
_OPERATIONS = {
    **dict.fromkeys(_SAME, lambda x: x),
    **{"add": operator.add, "subtract": operator.sub},
    **{"LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge},
}


def executed(module: Module) -> Iterator[tuple[Computation, Instruction, int]]:
    """Yields what runs: (computation, instruction, how often); loops of unknown length turn once.

    Instructions within fusions are not listed: a fusion runs as one. Of a conditional's branches
    the one with most FLOPs runs. What an async-start wraps is listed in its place.
    """
    yield from _executed(module, module.entry, 1)


def _executed(module: Module, computation: Computation, times: int):
    for one in computation:
        yield computation, one, times
        if one.op == "while":
            turns = trip_count(module, computation, one)
            body = module.computations[one.attribute("body")]
            yield from _executed(module, body, times * (1 if turns is None else turns))
        elif one.op == "conditional":
            branches = [module.computations[name] for name in one.branches]
            longest = max(branches, key=lambda branch: computation_flops(module, branch))
            yield from _executed(module, longest, times)
        elif one.op in ("call", "call-start", "async-start") and (inner := module.called(one)):
            yield from _executed(module, inner, times)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Returns how often a while loop turns, or None where it cannot be read.

    XLA's own `known_trip_count` is taken where it is written; else the loop's counter is run.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text)
    if known:
        return int(known[1])
    start = computation[loop.operands[0]]
    condition, body = (module.computations[loop.attribute(name)] for name in ("condition", "body"))

    @functools.cache
    def carried(turn: int, index: int) -> int:
        """The value of a place in the carry before a turn."""
        if turn == 0:  # what an argument is worth is not known: no place of {}
            return _value(module, computation, start.operands[index], {}.__getitem__)
        before = functools.partial(carried, turn - 1)
        return _value(module, body, body.root.operands[index], before)

    try:
        for turn in range(LONGEST):
            if not _value(module, condition, condition.root.name, functools.partial(carried, turn)):
                return turn
    except (LookupError, ValueError):  # it is not made of `_OPERATIONS` and whole numbers alone
        pass
    return None


def _value(module: Module, scope: Computation, name: str, read: Callable[[int], int]) -> int:
    """Returns what a whole number is; `read` gives those of the carry, or of a fusion's arguments.

    Raises:
      LookupError: that is not known.
      ValueError: it is no whole number.
    """
    one = scope[name]
    if one.op == "constant":
        return int(one.literal)
    if one.op in ("get-tuple-element", "parameter"):
        return read(int(one.attribute("index") or one.literal))
    if one.op == "fusion":
        inner = module.computations[one.attribute("calls")]
        return _value(
            module, inner, inner.root.name, lambda n: _value(module, scope, one.operands[n], read)
        )
    values = [_value(module, scope, operand, read) for operand in one.operands]
    return _OPERATIONS[one.attribute("direction") or one.op](*values)
