"""FLOPs and bytes of the instructions of a module, fusions looked into.

Conventions of XLA's own cost analysis: those of `lsm.cost` for products; a fusion reads of an
argument no more than its slices; an update in place touches the update alone. Unlike XLA's, which
counts every loop body once, the caller multiplies by `launch.plan.loops.executed`.
"""

import re
from collections.abc import Iterable, Iterator

from launch.plan.hlo import Array, Instruction
from lsm.cost import Window, convolution_flops, dot_flops

_KINDS = {"ragged-all-to-all": "all-to-all", "collective-broadcast": "all-gather"}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
"""Kinds of collectives, which are opcodes; each may have the suffix -start."""

_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "partition-id", "replica-id",
    "after-all", "domain", "opt-barrier", "add-dependency", "while", "conditional", "call",
    "call-start", "async-start", "send", "recv",
}  # fmt: skip
_HINTS = {  # targets of custom calls that only tell the compiler something
    "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveDone", "AsyncCollectiveStart",
    "ConcatBitcast", "GatherScatterIndicesBitpacked", "ZeroCrop",
}  # fmt: skip


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


def parts_of(one: Instruction) -> list[Instruction]:
    """Returns the instructions of a fusion, or the one."""
    return [*one.fused.instructions.values()] if one.fused else [one]


def flops(one: Instruction) -> float:
    """Returns the FLOPs of matrix products and convolutions in an instruction."""
    if one.fused:
        return sum(map(flops, one.fused.instructions.values()))
    if one.op == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.text)
        dims = [int(dim) for dim in contracted[1].split(",") if dim] if contracted else []
        return dot_flops(one.operands[0].arrays[0].dims, dims, one.arrays[0].dims)
    return _convolution(one) if one.op == "convolution" else 0.0


def _convolution(one: Instruction) -> float:
    lhs, rhs = (operand.arrays[0].dims for operand in one.operands[:2])
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


def traffic(one: Instruction) -> float:
    """Returns the bytes that an instruction reads from and writes to HBM."""
    if free(one) or _elsewhere(one):
        return 0.0
    if one.op in ("copy-start", "slice-start"):  # (one side, the other, a flag)
        sides = one.arrays[:2]
        return float(min(side.bytes for side in sides) * sum(side.hbm for side in sides))
    read = sum(_taken(one, operand) for operand in dict.fromkeys(one.operands))
    return float(read + _written(one.fused.root if one.fused else one))


def _elsewhere(one: Instruction) -> bool:
    """Whether its bytes go over the interconnect, or it is a hint to the compiler."""
    return bool(kind_of_collective(one.op)) or _target(one) in _HINTS


def read_of(one: Instruction) -> float:
    """Returns the bytes of a value that its users read: no more than their slices of it."""
    return min(sum(_taken(user, one) for user in one.users), _hbm(one.arrays))


def _taken(user: Instruction, one: Instruction) -> float:
    """Bytes that `user` reads of its operand `one` in HBM."""
    full, first = _hbm(one.arrays), user.operands[0] is one
    if not full or user.op == "tuple" or _elsewhere(user):  # a tuple hands it on
        return 0.0
    if user.op in ("bitcast", "get-tuple-element"):
        return read_of(user)
    if user.fused:
        places = [n for n, operand in enumerate(user.operands) if operand is one]
        return sum(read_of(user.fused.parameters[n]) for n in places)
    if first and user.op == "dynamic-update-slice":  # in place
        return 0.0
    if first and user.op in ("dynamic-slice", "slice", "gather"):
        return sum(array.bytes for array in user.arrays)
    return full


def _written(one: Instruction) -> float:
    """Bytes that are written for `one`, the root of a fused computation or a part of it."""
    if one.op == "tuple":
        return sum(map(_written, one.operands))
    if one.op == "bitcast" and _hbm(one.arrays):
        return _written(one.operands[0])
    if free(one) or _elsewhere(one):
        return 0.0
    if one.op == "dynamic-update-slice":
        return one.operands[1].arrays[0].bytes * one.arrays[0].hbm
    return _hbm(one.arrays)


def _hbm(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays if array.hbm)
