"""Floating-point operations of a function, counted from its jaxpr: nothing is compiled or run.

Matrix products and convolutions are counted, a multiply-add as two: what is left, elementwise, is
a per cent of a large model and runs on other units. Counts are of the whole batch, over all
devices.

    from lsm.cost import hardware_flops, model_flops

    model_flops(task.loss, params, model_state, batch, rngs).total    # what the maths needs
    hardware_flops(step, state, batch).total                          # what the step executes

Arguments may be arrays or `jax.ShapeDtypeStruct`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

_LINEAR_ALGEBRA = (
    "cholesky eig eigh fft householder_product lu qr schur svd triangular_solve tridiagonal_solve"
)
_OPAQUE = frozenset({"pallas_call", "ffi_call", *_LINEAR_ALGEBRA.split()})
"""Primitives that compute without a product that can be seen."""


@dataclasses.dataclass(frozen=True)
class Flops:
    """A count of floating-point operations.

    Attributes:
      forward: of the function itself.
      backward: what its gradient with respect to the parameters adds.
      uncounted: primitives whose operations are not known, or not how often they run; theirs are
        missing above (a `while` counts once).
    """

    forward: float = 0.0
    backward: float = 0.0
    uncounted: frozenset[str] = frozenset()

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.forward + other.forward,
            self.backward + other.backward,
            self.uncounted | other.uncounted,
        )

    def times(self, n: int) -> "Flops":
        """Returns the count of `n` runs."""
        return Flops(n * self.forward, n * self.backward, self.uncounted)


def hardware_flops(function: Callable, *args: Any) -> Flops:
    """Returns what a call of `function` executes, all in `forward`.

    A train step has its gradient written out, so that rematerialised products count each time.
    What no output depends on is left out. Of a `lax.cond` the longest branch counts; a body of
    `shard_map` counts once for each device of its axes; causal attention counts as it is computed,
    with all T x T scores.
    """
    jitted = hasattr(function, "trace")  # traced once, however often it is lowered or counted
    closed = function.trace(*args).jaxpr if jitted else jax.make_jaxpr(function)(*args)
    alive, outputs = _alive(closed.jaxpr), len(closed.jaxpr.outvars)
    return _count(alive, [False] * len(alive.invars), [False] * outputs)[0]


def model_flops(loss: Callable, params: Any, *args: Any) -> Flops:
    """Returns what training with `loss` needs, however its gradient is computed.

    Each product of `loss` counts once forward, and where a gradient arrives at it, once more for
    each of its two operands that depends on `params`: 3 times in all between layers, and twice in
    the first, whose input needs no gradient. Rematerialisation, accumulation and the layout on
    devices change nothing. This is the numerator of model FLOPs utilisation in PaLM
    (arXiv:2204.02311, appendix B): 6 N a token for a Transformer of N parameters, and attention's
    T x T products in full, causal or not. A mixture of experts counts the rows of its products,
    empty places with them (`lsm.train.throughput.training_flops` leaves those out). A kernel that
    states its cost counts twice that backward.

    Args:
      loss: (params, *args) -> the scalar to differentiate, or a tuple that begins with it.
      params: what the gradient is taken by: a tree of arrays or `jax.ShapeDtypeStruct`.
      *args: the other arguments of `loss`.
    """

    def scalar(*args):
        value = loss(*args)
        return value[0] if isinstance(value, tuple) else value

    closed = jax.make_jaxpr(scalar)(params, *args)
    leaves = len(jax.tree.leaves(params))
    trained = [i < leaves and _is_float(var) for i, var in enumerate(closed.jaxpr.invars)]
    return _count(_alive(closed.jaxpr), trained, [True])[0]


def _alive(jaxpr):
    """Returns `jaxpr` without what its outputs do not need; all inputs stay."""
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def _is_float(var) -> bool:
    dtype = getattr(var.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _count(jaxpr, trained: list[bool], wanted: list[bool]) -> tuple[Flops, list[bool]]:
    """Counts a jaxpr.

    Args:
      jaxpr: an open or closed jaxpr.
      trained: of each input, whether it depends on the parameters.
      wanted: of each output, whether a gradient arrives there.

    Returns:
      The count, and of each input whether a gradient arrives there.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    known = _trained(jaxpr, trained)
    arrives = dict.fromkeys(_variables(jaxpr.outvars, wanted), True)
    flops = Flops()
    # Backwards, as gradients go: whoever uses a variable has been asked before its maker.
    for eqn in reversed(jaxpr.eqns):
        inputs = [_of(known, var) for var in eqn.invars]
        outputs = [_of(arrives, var) and _of(known, var) for var in eqn.outvars]
        more, back = _count_eqn(eqn, inputs, outputs)
        flops += more
        arrives |= dict.fromkeys(_variables(eqn.invars, back), True)
    return flops, [_of(arrives, var) for var in jaxpr.invars]


def _of(marks: dict, var) -> bool:
    return not isinstance(var, Literal) and marks.get(var, False)


def _variables(atoms, marks: list[bool]) -> list:
    return [
        var for var, on in zip(atoms, marks, strict=True) if on and not isinstance(var, Literal)
    ]


def _trained(jaxpr, trained: list[bool]) -> dict:
    """Returns of each variable whether it depends on the parameters by a differentiable way."""
    known = dict(zip(jaxpr.invars, trained, strict=True))
    for eqn in jaxpr.eqns:
        outputs = _trained_eqn(eqn, [_of(known, var) for var in eqn.invars])
        known |= {var: on and _is_float(var) for var, on in zip(eqn.outvars, outputs, strict=True)}
    return known


def _trained_body(body, inputs: list[bool]) -> list[bool]:
    body = getattr(body, "jaxpr", body)
    known = _trained(body, inputs)
    return [_of(known, var) for var in body.outvars]


def _trained_eqn(eqn, inputs: list[bool]) -> list[bool]:
    name = eqn.primitive.name
    if name in ("scan", "while"):
        loop = _Loop.of(eqn)
        return _trained_body(loop.body, loop.settled(inputs))
    if name == "cond":
        branches = [_trained_body(branch, inputs[1:]) for branch in eqn.params["branches"]]
        return [any(outputs) for outputs in zip(*branches, strict=True)]
    if (body := _called(eqn)) is not None:
        return _trained_body(body, inputs)
    return [any(inputs) and name != "stop_gradient"] * len(eqn.outvars)


def _count_eqn(eqn, inputs: list[bool], outputs: list[bool]) -> tuple[Flops, list[bool]]:
    """As `_count`, of one equation."""
    name = eqn.primitive.name
    if name in ("scan", "while"):
        return _count_loop(eqn, inputs, outputs)
    if name == "cond":
        branches = [_count(branch, inputs[1:], outputs) for branch in eqn.params["branches"]]
        longest = max((flops for flops, _ in branches), key=lambda flops: flops.total)
        return longest, [False] + [any(b) for b in zip(*(b for _, b in branches), strict=True)]
    if (body := _called(eqn)) is not None:
        flops, back = _count(body, inputs, outputs)
        return flops.times(_devices(eqn)), back
    back = [any(outputs) and on for on in inputs]
    if name in _PRODUCTS:
        forward = _PRODUCTS[name](eqn)
        # The two factors; a third input holds the sizes of groups.
        return Flops(forward, forward * sum(back[:2])), back
    if name in _OPAQUE:
        return _opaque(eqn, any(back)), back
    return Flops(), back


def _called(eqn):
    """Returns the body of a jit, remat, custom_jvp, custom_vjp, shard_map, ...; None for others."""
    if eqn.primitive.name in _OPAQUE:
        return None
    # By signature: the parameter has another name in each primitive.
    for body in jaxprs_in_params(eqn.params):
        if (len(body.invars), len(body.outvars)) == (len(eqn.invars), len(eqn.outvars)):
            return body
    return None


def _devices(eqn) -> int:
    """Returns how many devices run the body of a shard_map; 1 for other calls."""
    if eqn.primitive.name != "shard_map":
        return 1
    return math.prod(eqn.params["mesh"].shape[axis] for axis in eqn.params["newly_manual_axes"])


class _Loop(NamedTuple):
    """A scan or while: its inputs are `skipped` others, constants, the carry and slices."""

    body: Any
    skipped: int
    constants: int
    carry: int
    turns: int

    @classmethod
    def of(cls, eqn) -> "_Loop":
        if eqn.primitive.name == "while":
            skipped, constants = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
            return cls(eqn.params["body_jaxpr"], skipped, constants, len(eqn.outvars), 1)
        body = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
        # A slice, and what is stacked of the turns, has an axis less inside than outside: counted
        # so, because the numbers (num_consts, num_carry) are no longer there in jax 0.12.
        slices = _with_another_rank(eqn.invars, body.invars)
        carry = len(eqn.outvars) - _with_another_rank(eqn.outvars, body.outvars)
        return cls(body, 0, len(eqn.invars) - slices - carry, carry, eqn.params["length"])

    def settled(self, inputs: list[bool]) -> list[bool]:
        """Returns what a turn's inputs depend on after all turns: a carry, on what any adds."""
        inputs = inputs[self.skipped :]
        first, last = self.constants, self.constants + self.carry
        # By way of another carry, maybe: so again, until no more are added.
        while True:
            outputs = _trained_body(self.body, inputs)[: self.carry]
            carry = _either(inputs[first:last], outputs)
            if carry == inputs[first:last]:
                return inputs
            inputs = inputs[:first] + carry + inputs[last:]


def _with_another_rank(outer, inner) -> int:
    return sum(a.aval.ndim != b.aval.ndim for a, b in zip(outer, inner, strict=True))


def _either(some: list[bool], others: list[bool]) -> list[bool]:
    return [a or b for a, b in zip(some, others, strict=True)]


def _count_loop(eqn, inputs: list[bool], outputs: list[bool]) -> tuple[Flops, list[bool]]:
    """Counts the body once a turn; of a while, whose turns nobody knows, once in all."""
    loop = _Loop.of(eqn)
    inside = loop.settled(inputs)
    while True:
        flops, back = _count(loop.body, inside, outputs)
        carry = _either(outputs[: loop.carry], back[loop.constants : loop.constants + loop.carry])
        if carry == outputs[: loop.carry]:
            break
        outputs = carry + outputs[loop.carry :]
    flops = flops.times(loop.turns)
    if eqn.primitive.name == "while":
        # No gradient goes through the test.
        test = eqn.params["cond_jaxpr"]
        flops += _count(test, [False] * len(test.in_avals), [False])[0]
        flops += Flops(uncounted=frozenset({"while"} if flops.total else ()))
    return flops, [False] * loop.skipped + back


def _opaque(eqn, backward: bool) -> Flops:
    """Takes a kernel's own estimate, where it has one."""
    estimate = eqn.params.get("cost_estimate")
    if estimate is None:
        return Flops(uncounted=frozenset({eqn.primitive.name}))
    return Flops(float(estimate.flops), 2.0 * estimate.flops * backward)


def dot_flops(lhs: Sequence[int], contracted: Iterable[int], result: Sequence[int]) -> float:
    """Returns the FLOPs of a product of arrays, from shapes: `contracted` dimensions are summed."""
    return 2.0 * math.prod(lhs[dim] for dim in contracted) * math.prod(result)


class Window(NamedTuple):
    """One spatial dimension of a convolution, as XLA describes it.

    Attributes:
      size: of the input.
      kernel: places of the kernel.
      result: places of the result.
      padding: places before the input's first.
      stride: places of the input from one of the result to the next.
      lhs_dilation: distance of the input's elements: holes between them are zeros.
      rhs_dilation: distance of the kernel's places.
    """

    size: int
    kernel: int
    result: int
    padding: int = 0
    stride: int = 1
    lhs_dilation: int = 1
    rhs_dilation: int = 1

    def pairs(self) -> int:
        """Returns how many (place of the result, place of the kernel) meet an element."""
        first, last = np.arange(self.result) * self.stride, (self.size - 1) * self.lhs_dilation
        count = 0
        for tap in range(self.kernel):
            place = first + tap * self.rhs_dilation - self.padding
            count += np.sum((place >= 0) & (place <= last) & (place % self.lhs_dilation == 0))
        return int(count)


def convolution_flops(features: int, windows: Iterable[Window]) -> float:
    """Returns the FLOPs of a convolution: multiply-adds that meet an element.

    Not padding, nor the holes of a dilated input: this is also how XLA's own cost analysis counts,
    and it makes the two convolutions of the backward pass as long as that of the forward pass.

    Args:
      features: rows x features of the result x features of the kernel's input.
      windows: of each spatial dimension.
    """
    return 2.0 * features * math.prod(window.pairs() for window in windows)


def _dot(eqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return dot_flops(eqn.invars[0].aval.shape, contracted, eqn.outvars[0].aval.shape)


def _ragged_dot(eqn) -> float:
    """A product of rows with a matrix each: every row meets one matrix, whichever it is."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    lhs = eqn.invars[0].aval.shape
    depth = math.prod(lhs[axis] for axis in contracted)
    out = math.prod(eqn.outvars[0].aval.shape)
    if set(numbers.lhs_ragged_dimensions) & set(contracted):
        out //= eqn.invars[2].aval.shape[-1]  # each row adds to the output of one group
    return 2.0 * depth * out


def _convolution(eqn) -> float:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    lhs, rhs = (var.aval.shape for var in eqn.invars)
    out = eqn.outvars[0].aval.shape
    windows = zip(
        (lhs[dim] for dim in numbers.lhs_spec[2:]),
        (rhs[dim] for dim in numbers.rhs_spec[2:]),
        (out[dim] for dim in numbers.out_spec[2:]),
        (low for low, _ in params["padding"]),
        params["window_strides"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    )
    # Batch, output channels, and input channels of one group (which is what rhs has).
    features = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]]
    return convolution_flops(features, itertools.starmap(Window, windows))


_PRODUCTS: dict[str, Callable[[Any], float]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}
