"""What a partitioner most likely makes of a jaxpr: layouts, memory, collectives; no compiler.

`partition` follows the mesh axes that every dimension is split over, from the arguments and from
the constraints inside, and adds up what that costs a device: bytes alive at once, and collectives
where a product meets operands that lie apart. XLA does the same with more care; see `launch.plan`
for how far the two are from each other.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from launch.plan.layouts import Layout, follow, joined, of_spec, placed_like
from launch.plan.steps import ALIASES, PRODUCTS, Value, dimensions, flat, lifetimes
from lsm.mesh import AXES, BATCH_AXES

SMALL = 2**16
"""Bytes from which on a reduction counts: smaller ones are combined into others."""


@dataclasses.dataclass
class Work:
    """What one device does in a step.

    Attributes:
      peak: bytes alive at once beside the arguments.
      moved: bytes that products, lookups and kernels read and write.
      collectives: (kind, axes, bytes of the gathered or reduced whole) -> times in a step.
      products: (count, bytes) of matrix products and convolutions.
      host: bytes that loops keep in the host's memory.
    """

    peak: int = 0
    moved: float = 0.0
    collectives: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    products: int = 0
    host: int = 0


def partition(
    closed: Any,
    layouts: Sequence[Layout],
    shape: Mapping[str, int],
    params: Mapping[tuple[int, ...], Layout],
    platform: str,
    in_place: Iterable[int] = (),
) -> Work:
    """Returns what a device does in one call of a jaxpr.

    Args:
      closed: the jaxpr.
      layouts: of its inputs.
      shape: ways of every mesh axis.
      params: shape of a parameter -> its layout, which gradients of that shape take.
      platform: "tpu" or "gpu": what a platform-dependent branch is chosen by.
      in_place: outputs that take the place of a donated input.
    """
    walker = _Walker(dict(shape), dict(params), platform)
    _, walker.work.peak = walker.run(closed.jaxpr, list(layouts), 1, frozenset(in_place))
    return walker.work


class _Frame:
    """One body while it is walked: what its values come from, and what is done once for all turns.

    The compiler takes out of a loop the gathering of what does not change, and the all-reduce of
    what is only added up in the carry; a reduce-scatter stays inside, which saves memory.
    """

    def __init__(self, inputs: list[Value], loop: tuple[int, int, int] | None, times: int):
        first, behind, self.turns = loop or (0, 0, 1)
        self.times = times
        self.constants = set(inputs[:first])
        self.added = {var.aval.shape for var in inputs[first:behind]}
        self.gathered: set = set()
        self.roots: dict[Value, Value] = {}

    def root(self, var: Value) -> Value:
        """What `var` is a cast or another view of."""
        return self.roots.get(var, var)

    def times_of_gather(self, var: Value) -> int:
        return self.times // self.turns if self.root(var) in self.constants else self.times

    def times_of_sum(self, var: Value) -> int:
        return self.times // self.turns if var.aval.shape in self.added else self.times


class _Layouts(dict):
    """The layout of every value; literals and constants are whole."""

    def __missing__(self, var: Value) -> Layout:
        return ((),) * var.aval.ndim


class _Walker:
    def __init__(self, shape: dict[str, int], params: dict, platform: str):
        self.shape, self.params, self.platform = shape, params, platform
        self.work = Work()
        self.quiet = False

    def run(self, jaxpr, layouts: list[Layout], times: int, in_place=frozenset(), loop=None):
        """Returns the outputs' layouts, and the bytes alive at once that are made inside.

        `loop` is (constants, constants and carry, turns) where this is the body of one.
        """
        inputs = [Value(var.aval) for var in jaxpr.invars]
        frame = _Frame(inputs, loop, times)
        steps, outputs = flat(jaxpr, inputs, self.platform)
        env = _Layouts(zip(inputs, layouts, strict=True))
        last, needed = lifetimes(steps, outputs, self.platform)
        needed.difference_update(outputs[i] for i in in_place)
        dying = collections.defaultdict(int)
        alive = peak = 0
        for i, step in enumerate(steps):
            inside = self.equation(step, env, frame)
            for var in step.outvars:
                if var in needed and step.primitive.name not in ALIASES:
                    size = self.bytes(var.aval, env[var])
                    alive += size
                    dying[last.get(var, i)] += size
            peak = max(peak, alive + inside)
            alive -= dying.pop(i, 0)
        return [env[var] for var in outputs], max(peak, alive)

    def ways(self, axes: Iterable[str]) -> int:
        return math.prod(self.shape.get(axis, 1) for axis in axes)

    def bytes(self, aval, layout: Layout) -> int:
        """Bytes of an array in a device's memory."""
        return 0 if _in_host(aval) else self.local(aval, layout)

    def local(self, aval, layout: Layout) -> int:
        """Bytes of a device's part of an array."""
        parts = (-(-n // self.ways(axes)) for n, axes in zip(aval.shape, layout, strict=True))
        return math.prod(parts) * _width(aval)

    def record(self, kind: str, axes: Iterable[str], size: float, times: int) -> None:
        axes = tuple(axis for axis in AXES if axis in axes and self.shape.get(axis, 1) > 1)
        if axes and size >= SMALL and not self.quiet:
            self.work.collectives[kind, axes, int(size)] += times

    def equation(self, eqn, env: dict, frame: _Frame) -> int:
        """Sets the layouts of what `eqn` returns; returns the bytes that live inside it alone."""
        name = eqn.primitive.name
        ins = [env[var] for var in eqn.invars]
        if not eqn.outvars:
            return 0
        if name in PRODUCTS:
            return self.product(eqn, ins, env, frame)
        if name == "scan":
            return self.scan(eqn, ins, env, frame.times)
        if name == "shard_map":
            outs = [
                of_spec(s, v.aval.ndim, self.shape)
                for s, v in zip(eqn.params["out_specs"], eqn.outvars, strict=True)
            ]
        else:
            outs = follow(eqn, ins, self.shape)
        if name in ALIASES or name in ("convert_element_type", "transpose", "slice"):
            source = eqn.invars[0]
            frame.roots[eqn.outvars[0]] = frame.root(source)
        for var, layout in zip(eqn.outvars, outs, strict=True):
            fixed = name == "sharding_constraint"
            env[var] = layout if fixed else placed_like(var.aval.shape, layout, self.params)
        self.costs(eqn, ins, env, frame.times)
        return 0

    def costs(self, eqn, ins: list[Layout], env: dict, times: int) -> None:
        """Records what an operation other than a product sends and moves."""
        name, out = eqn.primitive.name, eqn.outvars[0]
        layout = env[out]
        size = self.bytes(out.aval, layout)
        if name == "sharding_constraint":
            before, after = ({a for axes in one for a in axes} for one in (ins[0], layout))
            kept = self.bytes(out.aval, tuple(tuple(a for a in x if a in before) for x in layout))
            self.record("all-gather", before - after, kept, times)
            moved = [
                a
                for dim, axes in enumerate(ins[0])
                for a in axes
                if a in after and a not in layout[dim]
            ]
            self.record("all-to-all", moved, size, times)
        elif name.startswith(("reduce_", "arg")) and "axes" in eqn.params:
            lost = {a for dim in eqn.params["axes"] for a in ins[0][dim]}
            self.reduced(out, layout, lost, times)
        elif name.startswith("scatter"):
            rows = {a for axes in ins[2] for a in axes} & set(BATCH_AXES)
            self.reduced(out, layout, rows - {a for axes in ins[0] for a in axes}, times)
            self.move(size + self.bytes(eqn.invars[2].aval, ins[2]), times)
        elif name == "gather":
            collapsed = eqn.params["dimension_numbers"].collapsed_slice_dims
            self.reduced(out, layout, {a for dim in collapsed for a in ins[0][dim]}, times)
            self.move(2 * size, times)
        elif name == "concatenate":
            self.record("collective-permute", ins[0][eqn.params["dimension"]], size, times)
        elif name in ("pallas_call", "ffi_call", "shard_map"):
            read = sum(self.bytes(v.aval, x) for v, x in zip(eqn.invars, ins, strict=True))
            self.move(size + read, times)

    def move(self, size: float, times: int) -> None:
        if not self.quiet:
            self.work.moved += size * times

    def reduced(self, var, layout: Layout, axes: Iterable[str], times: int) -> None:
        """Records a sum over `axes`: scattered over those that the result is split by."""
        kept = [a for part in layout for a in part]
        scattered = [a for a in axes if a in kept]
        size = self.bytes(var.aval, layout)
        self.record("reduce-scatter", scattered, size * self.ways(scattered), times)
        self.record("all-reduce", [a for a in axes if a not in kept], size, times)

    def product(self, eqn, ins, env: dict, frame: _Frame) -> int:
        """A product: weights that lie apart are gathered, sums over split dimensions reduced."""
        pairs, results = dimensions(eqn)
        ins = list(ins[:2])
        extra = 0
        stays, moves = (0, 1) if self.weight(eqn, ins) == 1 else (1, 0)
        matched = {dims[moves]: dims[stays] for dims in pairs}
        used = {a for axes in ins[stays] for a in axes}
        lost = {
            a
            for dim, axes in enumerate(ins[moves])
            for a in axes
            if a in used and not (dim in matched and a in ins[stays][matched[dim]])
        }
        if lost:
            before, weight = ins[moves], eqn.invars[moves]
            ins[moves] = tuple(tuple(a for a in axes if a not in lost) for axes in before)
            extra = self.bytes(weight.aval, ins[moves])
            key = (frame.root(weight), frozenset(lost))
            if key not in frame.gathered:
                frame.gathered.add(key)
                self.record("all-gather", lost, extra, frame.times_of_gather(weight))
        contracted = [dims for dims in pairs if dims not in results]
        sums = {a for dims in contracted for side in (0, 1) for a in ins[side][dims[side]]}
        parts = [
            joined(*(ins[side][dim] for side, dim in enumerate(dims) if dim is not None))
            for dims in results
        ]
        layout, seen = [], set(sums)
        for axes in parts:
            layout.append(tuple(a for a in axes if a not in seen))
            seen.update(axes)
        out = eqn.outvars[0]
        env[out] = placed_like(out.aval.shape, tuple(layout), self.params)
        apart = out.aval.shape not in self.params or any(a in sums for x in env[out] for a in x)
        self.reduced(out, env[out], sums, frame.times if apart else frame.times_of_sum(out))
        size = self.bytes(out.aval, env[out]) + sum(
            self.bytes(eqn.invars[side].aval, ins[side]) for side in (0, 1)
        )
        self.move(size, frame.times)
        self.work.products += 0 if self.quiet else frame.times
        return extra

    def weight(self, eqn, ins: list[Layout]) -> int:
        """Which of the two operands is gathered: a parameter, the one without rows, the smaller."""
        shapes = [var.aval.shape for var in eqn.invars[:2]]
        known = [self.params.get(shape) == one for shape, one in zip(shapes, ins, strict=True)]
        if known[0] != known[1]:
            return int(known[1])
        rows = [any(a in BATCH_AXES for a in (axes[0] if axes else ())) for axes in ins]
        if rows[0] != rows[1]:
            return int(rows[0])
        return int(math.prod(shapes[1]) <= math.prod(shapes[0]))

    def scan(self, eqn, ins: list[Layout], env: dict, times: int) -> int:
        """A loop: the carry's layout is what it enters with, or what a turn gives it."""
        body = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
        slices = _of_another_rank(eqn.invars, body.invars)
        carry = len(eqn.outvars) - _of_another_rank(eqn.outvars, body.outvars)
        first, behind = len(ins) - slices - carry, len(ins) - slices
        inside = ins[:behind] + [layout[1:] for layout in ins[behind:]]
        self.quiet, quiet = True, self.quiet
        outs, _ = self.run(body, inside, 1)
        self.quiet = quiet
        inside[first:behind] = [
            old if any(old) else new for old, new in zip(inside[first:behind], outs, strict=False)
        ]
        length = eqn.params["length"]
        outs, peak = self.run(body, inside, times * length, loop=(first, behind, length))
        for i, (var, layout) in enumerate(zip(eqn.outvars, outs, strict=True)):
            whole = layout if i < carry else ((), *layout)
            env[var] = placed_like(var.aval.shape, whole, self.params)
            if _in_host(var.aval) and not self.quiet:
                self.work.host += self.local(var.aval, env[var])
        return peak


def _in_host(aval) -> bool:
    return "host" in str(getattr(aval, "memory_space", "")).lower()


def _width(aval) -> int:
    dtype = aval.dtype
    return np.dtype(dtype).itemsize if isinstance(dtype, np.dtype) else 8  # keys of random numbers


def _of_another_rank(outer, inner) -> int:
    return sum(a.aval.ndim != b.aval.ndim for a, b in zip(outer, inner, strict=True))
