"""FLOPs and bytes of the instructions of a module, fusions looked into.

Conventions of XLA's own cost analysis: those of `lsm.cost` for products; a fusion reads of an
argument no more than its slices; an update in place touches the update alone. Unlike XLA's, which
counts every loop body once, the caller multiplies by `launch.plan.loops.executed`.
"""

import re
from collections.abc import Iterable, Iterator

from launch.plan.hlo import Array, Computation, Instruction, Module
from lsm.cost import Window, convolution_flops, dot_flops

_KINDS = {"ragged-all-to-all": "all-to-all", "collective-broadcast": "all-gather"}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
"""Kinds of collectives, which are opcodes; each may have the suffix -start."""

_FREE = frozenset(
    (
        "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "partition-id",
        "replica-id", "after-all", "domain", "opt-barrier", "add-dependency", "while",
        "conditional", "call", "call-start", "async-start", "send", "recv",
    )
)  # fmt: skip
_HINTS = frozenset(
    (
        "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveDone",
        "AsyncCollectiveStart", "ConcatBitcast", "GatherScatterIndicesBitpacked", "ZeroCrop",
    )
)  # fmt: skip
"""Targets of custom calls that only tell the compiler something."""


def free(one: Instruction) -> bool:
    """Whether an instruction does no work of its own, or is counted where it starts."""
    return one.op in _FREE or one.op.endswith(("-done", "-update"))


def is_kernel(one: Instruction) -> bool:
    """Whether an instruction calls a kernel that XLA did not write, such as Pallas's."""
    return _target(one) == "tpu_custom_call"


def _target(one: Instruction) -> str | None:
    found = re.search(r'custom_call_target="([^"]*)"', one.text)
    return found[1] if one.op == "custom-call" and found else None


def kind_of_collective(op: str) -> str | None:
    """Returns the kind of a collective's opcode, or None."""
    kind = _KINDS.get(op.removesuffix("-start"), op.removesuffix("-start"))
    return kind if kind in _COLLECTIVES else None


def flops(module: Module, scope: Computation, one: Instruction) -> float:
    """Returns the FLOPs of matrix products and convolutions in an instruction."""
    if one.op == "fusion" and (inner := module.called(one)):
        return computation_flops(module, inner)
    if one.op == "dot":
        lhs, contracted = scope[one.operands[0]].arrays[0], one.numbers("lhs_contracting_dims")
        return dot_flops(lhs.dims, contracted, one.arrays[0].dims)
    return _convolution(scope, one) if one.op == "convolution" else 0.0


def computation_flops(module: Module, computation: Computation) -> float:
    """Returns the FLOPs of everything in a computation, loops within it counted once."""
    return sum(flops(module, computation, one) for one in computation)


def _convolution(scope: Computation, one: Instruction) -> float:
    lhs, rhs = (scope[name].arrays[0].dims for name in one.operands[:2])
    result = one.arrays[0].dims
    left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.text).groups()
    text = re.search(r"window=\{([^}]*)\}", one.text)
    given = dict(part.split("=") for part in text[1].split()) if text else {}

    def entries(n: int) -> Iterator[int]:
        """Padding, stride and dilations of dimension n; of a padding "low_high" the low one."""
        for key, default in (("pad", 0), ("stride", 1), ("lhs_dilate", 1), ("rhs_dilate", 1)):
            texts = given[key].split("x") if key in given else [str(default)] * (n + 1)
            yield int(texts[n].partition("_")[0])

    windows = [
        Window(lhs[left.index(at)], rhs[right.index(at)], result[out.index(at)], *entries(int(at)))
        for at in map(str, range(len(out) - 2))
    ]
    features = result[out.index("b")] * result[out.index("f")] * rhs[right.index("i")]
    return convolution_flops(features, windows) / int(one.attribute("batch_group_count") or 1)


def operand_bytes(scope: Computation, one: Instruction) -> int:
    """Returns the bytes of what an instruction takes."""
    return sum(array.bytes for name in one.operands for array in scope[name].arrays)


def traffic(module: Module, scope: Computation, one: Instruction) -> float:
    """Returns the bytes that an instruction reads from and writes to HBM."""
    if free(one) or _elsewhere(one):
        return 0.0
    if one.op in ("copy-start", "slice-start"):  # (one side, the other, a flag)
        sides = one.arrays[:2]
        return float(min(side.bytes for side in sides) * sum(side.hbm for side in sides))
    read = sum(_taken(module, scope, one, name) for name in dict.fromkeys(one.operands))
    inner = module.called(one) if one.op == "fusion" else None
    return float(read + (_written(inner, inner.root) if inner else _written(scope, one)))


def _elsewhere(one: Instruction) -> bool:
    """Whether its bytes go over the interconnect, or it is a hint to the compiler."""
    return bool(kind_of_collective(one.op)) or _target(one) in _HINTS


def read_of(module: Module, scope: Computation, one: Instruction) -> float:
    """Returns the bytes of `one` that its users read: no more than their slices of it."""
    taken = sum(_taken(module, scope, user, one.name) for user in scope.users[one.name])
    return min(taken, _hbm(one.arrays))


def _taken(module: Module, scope: Computation, user: Instruction, name: str) -> float:
    """Bytes that `user` reads of an operand in HBM."""
    full = _hbm(scope[name].arrays)
    if not full or user.op == "tuple" or _elsewhere(user):  # a tuple hands it on
        return 0.0
    if user.op in ("bitcast", "get-tuple-element"):
        return read_of(module, scope, user)
    if user.op == "fusion" and (inner := module.called(user)):
        places = [n for n, operand in enumerate(user.operands) if operand == name]
        return sum(read_of(module, inner, inner.parameters[n]) for n in places)
    if user.operands[0] == name and user.op == "dynamic-update-slice":  # in place
        return 0.0
    if user.operands[0] == name and user.op in ("dynamic-slice", "slice", "gather"):
        return sum(array.bytes for array in user.arrays)
    return full


def _written(scope: Computation, one: Instruction) -> float:
    """Bytes that are written for `one`, the root of a fused computation or a part of it."""
    if one.op == "tuple":
        return sum(_written(scope, scope[name]) for name in one.operands)
    if one.op == "bitcast" and _hbm(one.arrays):
        return _written(scope, scope[one.operands[0]])
    if free(one) or _elsewhere(one):
        return 0.0
    if one.op == "dynamic-update-slice":
        return scope[one.operands[1]].arrays[0].bytes * one.arrays[0].hbm
    return _hbm(one.arrays)


def _hbm(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays if array.hbm)
