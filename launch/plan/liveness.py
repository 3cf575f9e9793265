"""Bytes alive at once in a module that no compiler has scheduled yet.

What comes out of XLA's partitioner is not fused and has no buffers. This takes the order of its
text for that of time, and lets everything elementwise be fused into what reads it: products,
lookups, sums, kernels and collectives read and write memory, views and loops take none.
"""

import collections
import functools

from launch.plan.costs import kind_of_collective
from launch.plan.hlo import Computation, Instruction, Module

_READS = frozenset(
    (
        "dot", "convolution", "call", "conditional", "custom-call", "scatter", "gather",
        "sort", "fft", "cholesky", "triangular-solve", "rng-bit-generator",
    )
)  # fmt: skip
"""What takes its operands from memory, and writes; collectives do too."""

_SUMS = frozenset(["reduce", "reduce-window", "select-and-scatter", "topk"])
"""What operands can be fused into, but whose result is written."""

_VIEWS = frozenset(
    (
        "get-tuple-element", "tuple", "reshape", "bitcast", "copy", "opt-barrier",
        "broadcast",
    )
)  # fmt: skip
_IN_PLACE = frozenset(("while", "dynamic-update-slice"))
_FILLS = frozenset(("broadcast", "iota", "constant"))
_NOTHING = _VIEWS | _IN_PLACE | _FILLS | {"parameter", "partition-id"}


def heavy(scope: Computation, one: Instruction) -> bool:
    """Whether an instruction takes its operands from memory, and writes its result."""
    return one.op in _READS or bool(kind_of_collective(one.op) and not narrowed(scope, one))


def narrowed(scope: Computation, one: Instruction) -> tuple[Instruction, ...]:
    """Returns the casts to fewer bytes that alone read a collective: they go before it."""
    users = scope.users[one.name]
    size = sum(array.bytes for array in one.arrays)
    smaller = [user.op == "convert" and user.arrays[0].bytes < size for user in users]
    return tuple(users) if users and all(smaller) else ()


def peak(module: Module) -> int:
    """Returns the most bytes alive at once beside the arguments, and what takes their place."""

    @functools.cache
    def inside(name: str) -> int:
        return _peak(module, module.computations[name], inside)

    return _peak(module, module.entry, inside)


def _peak(module: Module, scope: Computation, inside) -> int:
    last, written = _lifetimes(module, scope)
    alive = most = 0
    dying = collections.Counter()
    for i, one in enumerate(scope):
        bodies = [inside(name) for name in _bodies(one)]
        if one.name in written:
            size = sum(array.bytes for array in one.arrays)
            alive += size
            dying[last.get(one.name, i)] += size
        most = max(most, alive + max(bodies, default=0))
        alive -= dying.pop(i, 0)
    return most


def _bodies(one: Instruction) -> tuple[str, ...]:
    body = one.attribute("body") or (one.op == "call" and one.attribute("to_apply"))
    return (body,) if body else one.branches


def _lifetimes(module: Module, scope: Computation) -> tuple[dict[str, int], set[str]]:
    """Returns the place of the last instruction that reads each value, and what is written.

    What is fused lives as long as what it is fused into: its operands are read there.
    """
    ends, made = len(scope.instructions), set()
    results = scope.root.operands if scope.root.op == "tuple" else (scope.root.name,)
    last = dict.fromkeys(results, ends)
    needed = set() if scope is module.entry else set(results) - _updated(scope, results)
    for i, one in reversed(list(enumerate(scope))):
        if one.name not in last:
            continue  # nothing reads it, or it is the tuple of the results
        reads, operands = heavy(scope, one), one.operands
        if reads or one.op in _SUMS:
            needed.add(one.name)
        end = i if one.name in needed and one.op not in _NOTHING else last[one.name]
        if one.op == "while":
            changed, kept = _carry(module, scope, one, last)
            operands = (*changed, *kept)
            made.update(changed)
        passes = one.op in _NOTHING and one.name in needed
        if reads or passes or one.op == "while":
            needed.update(operands[:1] if one.op == "dynamic-update-slice" else operands)
        last.update({name: max(last.get(name, 0), end) for name in operands})
    fills = {name for name in made if scope[name].op in _FILLS}
    return last, fills | {name for name in needed if scope[name].op not in _NOTHING}


def _carry(
    module: Module, scope: Computation, loop: Instruction, last: dict[str, int]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns what a loop changes, in place, and what it only reads.

    What it hands on unread is left out: residuals of a kernel of another platform, say.
    """
    start, body = scope[loop.operands[0]], module.computations[loop.attribute("body")]
    if start.op != "tuple" or body.root.op != "tuple":
        return (), loop.operands
    taken, before = _elements(scope, loop.name), _elements(body, body.parameters[0].name)
    changed, kept = [], []
    for i, (name, result) in enumerate(zip(start.operands, body.root.operands, strict=True)):
        users = body.users[before[i].name] if i in before else []
        read = any(user is not body.root and user.op != "dynamic-update-slice" for user in users)
        same = i in before and result == before[i].name
        if read or (not same and i in taken and taken[i].name in last):
            (kept if same else changed).append(name)
    return tuple(changed), tuple(kept)


def _elements(scope: Computation, name: str) -> dict[int, Instruction]:
    """Returns the elements that are taken of a tuple."""
    found = [one for one in scope.users[name] if one.op == "get-tuple-element"]
    return {int(one.attribute("index")): one for one in found}


def _updated(scope: Computation, results: tuple[str, ...]) -> set[str]:
    """Returns the results of a loop's body that can be written over what they replace."""
    place = {name: i for i, name in enumerate(scope.instructions)}
    before = _elements(scope, scope.parameters[0].name) if len(scope.parameters) == 1 else {}
    return {
        result
        for i, result in enumerate(results)
        if i in before
        and all(place[user.name] <= place[result] for user in scope.users[before[i].name])
    }
