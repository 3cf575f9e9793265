"""A jaxpr as a list of steps: calls written out, what is fused, and how long each value lives."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Literal, jaxprs_in_params

ALIASES = frozenset({"reshape", "squeeze", "broadcast_in_dim", "copy", "optimization_barrier"})
"""Operations that take no memory: another view, or made where it is read."""


PRODUCTS = frozenset({"dot_general", "conv_general_dilated", "ragged_dot_general"})
"""Operations on the matrix units."""

_CALLS = frozenset(
    [
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "remat",
        "remat2",
        "checkpoint",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
    ]
)
_HEAVY = PRODUCTS | {"scan", "shard_map", "pallas_call", "ffi_call"}
"""What reads and writes memory; everything else is fused into what needs it."""


class Value:
    """What an equation returns: a variable of one call, where a jaxpr may be called twice."""

    def __init__(self, aval: Any):
        self.aval = aval


class Step(NamedTuple):
    """An equation with the values that it reads and returns."""

    primitive: Any
    params: Mapping[str, Any]
    invars: list
    outvars: list


def flat(jaxpr, inputs: Sequence, platform: str) -> tuple[list[Step], list]:
    """Returns the steps of a jaxpr, calls written out, and its outputs."""
    env = dict(zip(jaxpr.invars, inputs, strict=True))
    env |= {var: Value(var.aval) for var in jaxpr.constvars}
    steps = []

    def read(var):
        return Value(var.aval) if isinstance(var, Literal) else env[var]

    for eqn in jaxpr.eqns:
        ins = [read(var) for var in eqn.invars]
        body = _body(eqn, platform)
        if body is None:
            outs = [Value(var.aval) for var in eqn.outvars]
            steps.append(Step(eqn.primitive, eqn.params, ins, outs))
        else:
            inner, outs = flat(body, ins[len(ins) - len(body.invars) :], platform)
            steps += inner
        env.update(zip(eqn.outvars, outs, strict=True))
    return steps, [read(var) for var in jaxpr.outvars]


def _body(eqn, platform: str) -> Any | None:
    """Returns the jaxpr that an equation calls once, with its last inputs; else None."""
    name, inputs, body = eqn.primitive.name, len(eqn.invars), None
    if name == "cond":
        branches, inputs = eqn.params["branches"], inputs - 1
        platforms = eqn.params.get("branches_platforms")
        if platforms:
            known = [i for i, one in enumerate(platforms) if one and platform in one]
            body = branches[known[0] if known else len(branches) - 1]
        else:
            body = max(branches, key=lambda one: len(one.jaxpr.eqns))
    elif name == "while":
        body, inputs = eqn.params["body_jaxpr"], inputs - eqn.params["cond_nconsts"]
    elif name in _CALLS:
        bodies = jaxprs_in_params(eqn.params)
        body = next((one for one in bodies if len(one.outvars) == len(eqn.outvars)), None)
    body = getattr(body, "jaxpr", body)
    return body if body is not None and len(body.invars) == inputs else None


def lifetimes(steps: list[Step], outputs: list, platform: str) -> tuple[dict, set]:
    """Returns the last step that reads each value, and which values are written to memory.

    What is fused lives as long as what it is fused into: its inputs are read there. What a loop
    returns and nothing reads is not written: residuals of a kernel of another platform, say.
    """
    needed = set(outputs)
    last = dict.fromkeys(needed, len(steps))
    for i, step in reversed(list(enumerate(steps))):
        name = step.primitive.name
        heavy = name in _HEAVY or name.startswith(("scatter", "gather", "sort"))
        ends = heavy or name.startswith(("reduce_", "arg", "cum"))
        if ends:
            needed.update(var for var in step.outvars if name != "scan" or var in last)
        passes = name in ALIASES and step.outvars[0] in needed
        end = i if ends else max((last.get(var, i) for var in step.outvars), default=i)
        read = _read(step, platform)
        for var in read:
            last[var] = max(last.get(var, i), end)
        if heavy or passes:
            needed.update(read)
    return last, needed


def _read(step: Step, platform: str) -> list:
    """Returns the inputs of a step that it reads; of a scan, those that its body does."""
    if step.primitive.name != "scan":
        return step.invars
    body = getattr(step.params["jaxpr"], "jaxpr", step.params["jaxpr"])
    inputs = [Value(var.aval) for var in body.invars]
    inside, outputs = flat(body, inputs, platform)
    used = set(outputs).union(*(_read(each, platform) for each in inside))
    return [var for var, one in zip(step.invars, inputs, strict=True) if one in used]


def dimensions(eqn) -> tuple[list, list]:
    """Returns the pairs of dimensions that meet, and where each of the result's comes from.

    Both are (dimension of the first operand or None, of the second or None); pairs that are among
    the results are batch dimensions, the others are summed over.
    """
    first, second = (range(var.aval.ndim) for var in eqn.invars[:2])
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        results: list = [(None, None)] * len(out)
        results[out[0]], results[out[1]] = (lhs[0], None), (None, rhs[0])
        return [(lhs[1], rhs[1])], results
    numbers = eqn.params.get("dimension_numbers")
    if numbers is None:
        numbers = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    (left, right), (left_batch, right_batch) = numbers
    batch = list(zip(left_batch, right_batch, strict=True))
    pairs = list(zip(left, right, strict=True)) + batch
    results = list(batch)
    results += [(d, None) for d in first if d not in (*left, *left_batch)]
    results += [(None, d) for d in second if d not in (*right, *right_batch)]
    return pairs, results[: eqn.outvars[0].aval.ndim]
