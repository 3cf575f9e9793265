"""How often each instruction of a module runs: loops with their trip counts, calls, branches."""

import re
from collections.abc import Callable, Iterator

from launch.plan.hlo import Computation, Instruction, Module

_TRANSPARENT = ("copy", "bitcast", "convert", "reshape", "copy-done")


def executed(
    module: Module, weight: Callable[[Computation], float] = lambda _: 0.0
) -> Iterator[tuple[Computation, Instruction, int, bool]]:
    """Yields what runs: (computation, instruction, how often, whether its loop count is known).

    Instructions within fusions are not listed: a fusion runs as one. Of a conditional's branches
    the one with the greatest `weight` runs. What an async-start wraps is listed in its place.
    """
    yield from _executed(module, module.entry, 1, True, weight)


def _executed(module, computation, times, known, weight):
    for one in computation:
        yield computation, one, times, known
        if one.op == "while":
            trips = trip_count(module, computation, one)
            turns, sure = (1, False) if trips is None else (trips, known)
            body = module.computations[one.attribute("body")]
            yield from _executed(module, body, times * turns, sure, weight)
        elif one.op == "conditional" and one.branches:
            branch = max((module.computations[name] for name in one.branches), key=weight)
            yield from _executed(module, branch, times, known, weight)
        elif one.op in ("call", "call-start", "async-start") and (inner := module.called(one)):
            yield from _executed(module, inner, times, known, weight)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Returns how often a while loop turns, or None where it cannot be read.

    XLA's own `known_trip_count` is taken where it is written; else the loop is read: its condition
    compares a counter with a constant, its body adds a constant, its start is a constant.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text)
    if known:
        return int(known[1])
    found = _condition(module, loop)
    if found is None:
        return None
    index, direction, limit = found
    start = _initial(module, computation, loop, index)
    limit = limit if isinstance(limit, int) else _initial(module, computation, loop, limit[0])
    step = _step(module, loop, index)
    if start is None or limit is None or not step:
        return None
    last = {"LT": limit - 1, "LE": limit, "GT": limit + 1, "GE": limit}.get(direction)
    return None if last is None else max((last - start) // step + 1, 0)


def _condition(module: Module, loop: Instruction):
    """Returns (carry index of the counter, direction, limit: an int or (carry index,))."""
    condition = module.computations[loop.attribute("condition")]
    compare, scope, arguments = condition.root, condition, None
    if compare.op == "fusion":
        arguments = [_resolve(condition, name) for name in compare.operands]
        scope = module.called(compare)
        compare = next((one for one in scope if one.op == "compare"), scope.root)
    if compare.op != "compare":
        return None
    sides = [_resolve(scope, name, arguments) for name in compare.operands]
    direction = compare.attribute("direction")
    if isinstance(sides[0], int):
        sides.reverse()
        direction = direction.translate(str.maketrans("LG", "GL"))
    counter, limit = sides
    if not isinstance(counter, tuple) or limit is None:
        return None
    return counter[0], direction, limit


def _initial(module: Module, computation: Computation, loop: Instruction, index: int):
    carry = computation[loop.operands[0]]
    if carry.op != "tuple":
        return None
    value = _resolve(computation, carry.operands[index])
    return value if isinstance(value, int) else None


def _step(module: Module, loop: Instruction, index: int) -> int | None:
    body = module.computations[loop.attribute("body")]
    if body.root.op != "tuple":
        return None
    one, scope, arguments = body[body.root.operands[index]], body, None
    while one.op in _TRANSPARENT:
        one = body[one.operands[0]]
    if one.op == "fusion" and (inner := module.called(one)):
        arguments = [_resolve(body, name) for name in one.operands]
        one, scope = inner.root, inner
    if one.op not in ("add", "subtract"):
        return None
    sides = [_resolve(scope, name, arguments) for name in one.operands]
    amount = next((side for side in sides if isinstance(side, int)), None)
    if (index,) not in sides or amount is None:
        return None
    return amount if one.op == "add" else -amount


def _resolve(scope: Computation, name: str, arguments=None) -> int | tuple[int] | None:
    """Returns what a scalar is: a constant, (carry index,) of a loop, or None."""
    one = scope.instructions.get(name)
    while one is not None and one.op in _TRANSPARENT:
        one = scope.instructions.get(one.operands[0])
    if one is None:
        return None
    if one.op == "constant":
        return int(one.literal) if re.fullmatch(r"-?\d+", one.literal) else None
    if one.op == "get-tuple-element":
        return (int(one.attribute("index")),)
    if one.op == "parameter" and arguments:
        return arguments[int(one.literal)]
    return None
