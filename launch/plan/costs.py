"""FLOPs and bytes of the instructions of a module, fusions looked into.

Conventions of XLA's own cost analysis: those of `lsm.cost` for products; a fusion reads of an
argument no more than its slices; an update in place touches the update alone. Unlike XLA's, which
counts every loop body once, the caller multiplies by `launch.plan.loops.executed`.
"""

import functools
import re
from collections.abc import Callable

from launch.plan.hlo import Array, Computation, Instruction, Module
from lsm.cost import Window, convolution_flops, dot_flops

COLLECTIVES = {
    "all-gather": "all-gather",
    "all-reduce": "all-reduce",
    "reduce-scatter": "reduce-scatter",
    "all-to-all": "all-to-all",
    "ragged-all-to-all": "all-to-all",
    "collective-permute": "collective-permute",
    "collective-broadcast": "all-gather",
}
"""Opcode -> kind; each may have the suffix -start."""

FREE = frozenset(
    (
        "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "partition-id",
        "replica-id", "after-all", "opt-barrier", "domain", "add-dependency", "while",
        "conditional", "call", "call-start", "call-done", "async-start", "async-update",
        "async-done", "copy-done", "slice-done", "all-gather-done", "all-reduce-done",
        "collective-permute-done", "custom-call-update", "custom-call-done", "send",
        "send-done", "recv", "recv-done",
    )
)  # fmt: skip
"""Opcodes that do no work of their own, or whose work is counted where it starts."""

_MARKS = frozenset(
    (
        "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveDone",
        "AsyncCollectiveStart", "ConcatBitcast", "GatherScatterIndicesBitpacked", "ZeroCrop",
    )
)  # fmt: skip
"""Targets of custom calls that only tell the compiler something."""


def is_kernel(one: Instruction) -> bool:
    """Whether an instruction calls a kernel that XLA did not write, such as Pallas's."""
    return _target(one) == "tpu_custom_call"


def _target(one: Instruction) -> str | None:
    found = re.search(r'custom_call_target="([^"]*)"', one.text)
    return found[1] if one.op == "custom-call" and found else None


def kind_of_collective(op: str) -> str | None:
    """Returns the kind of a collective's opcode, or None."""
    return COLLECTIVES.get(op.removesuffix("-start"))


def flops(module: Module, scope: Computation, one: Instruction) -> float:
    """Returns the FLOPs of matrix products and convolutions in an instruction."""
    if one.op == "fusion" and (inner := module.called(one)):
        return computation_flops(module, inner)
    if one.op == "dot":
        lhs, contracted = _array(scope, one.operands[0]), one.numbers("lhs_contracting_dims")
        return dot_flops(lhs.dims, contracted, one.arrays[0].dims)
    return _convolution(scope, one) if one.op == "convolution" else 0.0


def computation_flops(module: Module, computation: Computation) -> float:
    """Returns the FLOPs of everything in a computation, loops within it counted once."""
    return sum(flops(module, computation, one) for one in computation)


def weight_of(module: Module) -> Callable[[Computation], float]:
    """Returns the weight by which the longest branch of a conditional is chosen: its FLOPs."""
    return functools.cache(lambda computation: computation_flops(module, computation))


def _convolution(scope: Computation, one: Instruction) -> float:
    lhs, rhs = (_array(scope, name).dims for name in one.operands[:2])
    result = one.arrays[0].dims
    left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.text).groups()
    text = re.search(r"window=\{([^}]*)\}", one.text)
    given = dict(part.split("=") for part in text[1].split()) if text else {}

    def entry(key: str, n: int, default: int) -> int:
        """The entry of dimension n; of a padding "low_high" the low one."""
        texts = re.split(r"(?<=\d)x", given[key]) if key in given else [str(default)] * (n + 1)
        return int(texts[n].partition("_")[0])

    windows = [
        Window(
            size=lhs[left.index(label)],
            kernel=rhs[right.index(label)],
            result=result[out.index(label)],
            padding=entry("pad", n, 0),
            stride=entry("stride", n, 1),
            lhs_dilation=entry("lhs_dilate", n, 1),
            rhs_dilation=entry("rhs_dilate", n, 1),
        )
        for n, label in enumerate(map(str, range(len(out) - 2)))
    ]
    features = result[out.index("b")] * result[out.index("f")] * rhs[right.index("i")]
    return convolution_flops(features, windows) / int(one.attribute("batch_group_count") or 1)


def operand_bytes(scope: Computation, one: Instruction) -> int:
    """Returns the bytes of what an instruction takes."""
    return sum(array.bytes for name in one.operands for array in scope[name].arrays)


def traffic(module: Module, scope: Computation, one: Instruction) -> float:
    """Returns the bytes that an instruction reads from and writes to HBM."""
    if one.op in FREE:
        return 0.0
    if one.op == "fusion" and (inner := module.called(one)):
        read = sum(read_of(module, inner, argument) for argument in inner.parameters.values())
        return read + _written(inner, inner.root)
    if kind_of_collective(one.op) or _target(one) in _MARKS:
        return 0.0  # the bytes of a collective go over the interconnect
    if one.op in ("copy-start", "slice-start"):  # (one side, the other, a flag)
        sides = one.arrays[:2]
        return float(min(side.bytes for side in sides) * sum(side.hbm for side in sides))
    if one.op in ("dynamic-slice", "slice", "gather"):
        source, (result, *_) = _array(scope, one.operands[0]), one.arrays
        return float(result.bytes * (source.hbm + result.hbm))
    if one.op == "dynamic-update-slice":
        update, (result, *_) = _array(scope, one.operands[1]), one.arrays
        return float(update.bytes * (update.hbm + result.hbm))
    read = [_array(scope, name) for name in one.operands if name in scope.instructions]
    return float(_hbm(read) + _hbm(one.arrays))


def _hbm(arrays) -> int:
    return sum(array.bytes for array in arrays if array is not None and array.hbm)


def _array(scope: Computation, name: str) -> Array | None:
    arrays = scope[name].arrays
    return arrays[0] if arrays else None


def read_of(module: Module, scope: Computation, one: Instruction) -> float:
    """Returns the bytes that are read of `one`, as of an argument of a fused computation."""
    full = float(_hbm(one.arrays))
    if not full:
        return 0.0
    read = 0.0
    for user in scope.users[one.name]:
        first = user.operands[0] == one.name
        if user.op in ("bitcast", "get-tuple-element"):
            read += read_of(module, scope, user)
        elif user.op in ("dynamic-slice", "slice", "gather") and first:
            read += sum(array.bytes for array in user.arrays)
        elif user.op == "fusion" and (inner := module.called(user)):
            for number, name in enumerate(user.operands):
                if name == one.name:
                    read += read_of(module, inner, inner.parameters[number])
        elif not (
            user.op == "tuple"  # handed on
            or kind_of_collective(user.op)
            or (user.op == "dynamic-update-slice" and first)  # in place
        ):
            return full
    return min(read, full)


def _written(scope: Computation, one: Instruction) -> float:
    """Bytes that a fused computation writes for `one`, its root or a part of its root."""
    if one.op == "tuple":
        return sum(_written(scope, scope[name]) for name in one.operands)
    if one.op == "bitcast" and one.arrays and one.arrays[0].hbm:
        return _written(scope, scope[one.operands[0]])
    if one.op in FREE or kind_of_collective(one.op) or not _hbm(one.arrays):
        return 0.0
    if one.op == "custom-call":
        return 0.0  # the start or the end of an async collective
    if one.op == "dynamic-update-slice":
        return float(_array(scope, one.operands[1]).bytes)
    return float(_hbm(one.arrays))
