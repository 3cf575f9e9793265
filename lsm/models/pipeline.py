"""Layers one after the other: in a loop, or in stages on different devices (GPipe)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lsm.errors import MeshError
from lsm.mesh import BATCH_AXES, constrain, split_rows, ways

Layer = Callable[..., tuple[Any, Any]]
"""(rows, parameters of the layer, number of the tick, *beside) -> (rows, results); pure."""

_MICRO_BATCHES = 4
"""Micro-batches for each stage, at most: a fifth of the time is then lost."""


def run_layers(
    layer: Layer, layers: Any, rows: Any, unroll: int = 1, beside: tuple[Any, ...] = ()
) -> tuple[Any, Any]:
    """Returns `rows` after all layers, and each layer's results, stacked (L, ...) in their order.

    Args:
      layer: applied to one layer after the other.
      layers: tree of arrays stacked along a leading layer dimension (L, ...).
      rows: tree of arrays (B, ...); the results have the same shapes.
      unroll: layers compiled out in each turn of the loop.
      beside: trees of arrays (B, ...) that every layer reads and none changes.

    The results are a tree, or None. In stages, its arrays must be (B, ...) as well.

    Raises:
      MeshError: the ambient mesh has more stages than divide the layers.
    """

    def stack(layers: Any, rows: Any, beside: tuple[Any, ...], tick: jax.Array) -> tuple[Any, Any]:
        def turn(rows, one):
            return layer(rows, one, tick, *beside)

        return jax.lax.scan(turn, rows, layers, unroll=unroll)

    if ways("pipeline") == 1:
        return stack(layers, rows, beside, jnp.int32(0))
    return _pipeline(stack, layers, rows, beside)


def _pipeline(stage: Callable, layers: Any, rows: Any, beside: Any) -> tuple[Any, Any]:
    """As `run_layers`, where the axis "pipeline" splits the layers into stages.

    All stages work at the same time, each on another micro-batch; after each tick every
    micro-batch moves on to the next stage (a collective permute). With S stages and M
    micro-batches, (S - 1) / (M + S - 1) of the time is lost (Huang et al. 2018, arXiv:1811.06965).
    M is the largest number up to 4 S that divides a device's rows.
    """
    stages = ways("pipeline")
    depth = jax.tree.leaves(layers)[0].shape[0]
    if depth % stages:
        raise MeshError(f"mesh.pipeline={stages} does not divide the {depth} layers.")
    count = _micro_batches(jax.tree.leaves(rows)[0].shape[0], _MICRO_BATCHES * stages)
    # (S, L / S, ...): neighbours in depth are on one stage.
    layers = jax.tree.map(lambda x: x.reshape(stages, depth // stages, *x.shape[1:]), layers)
    # (M, B / M, ...): every device keeps its own rows.
    micro = jax.tree.map(lambda x: split_rows(x, count), (rows, beside))
    # vmap over stages; `constrain` inside of a stage then means its own part, on its own devices.
    all_stages = jax.vmap(stage, in_axes=(0, 0, 0, None), spmd_axis_name="pipeline")

    def tick(held: Any, number: jax.Array) -> tuple[Any, Any]:
        # When all have entered, the last enters again: it would leave after the last tick.
        entering = jax.tree.map(lambda x: x[jnp.minimum(number, count - 1)], micro)
        # Stage s takes over what stage s - 1 held: the roll is the collective permute.
        held = jax.tree.map(lambda x, new: jnp.roll(x, 1, axis=0).at[0].set(new), held, entering)
        held, beside = jax.tree.map(_placed, held)
        held, results = all_stages(layers, held, beside, number)
        held = jax.tree.map(_placed, held)
        return (held, beside), (jax.tree.map(lambda x: x[-1], held), results)

    # (S, B / M, ...): what stages work on before the first micro-batch reaches them.
    empty = jax.tree.map(lambda x: jnp.zeros((stages, *x.shape[1:]), x.dtype), micro)
    _, (leaving, results) = jax.lax.scan(tick, empty, jnp.arange(count + stages - 1))
    # The first micro-batch leaves the last stage at tick S - 1.
    rows = jax.tree.map(lambda x: _join(x[stages - 1 :]), leaving)
    return rows, jax.tree.map(functools.partial(_in_order, count=count), results)


def _micro_batches(rows: int, most: int) -> int:
    local = max(rows // ways(*BATCH_AXES), 1)
    # Of a device's rows, not of the batch's: `split_rows` moves none to another device.
    return max(n for n in range(1, min(local, most) + 1) if local % n == 0)


def _join(x: jax.Array) -> jax.Array:
    # (M, B / M, ...) to (B, ...): undoes `split_rows`, so micro-batches are the inner dimension.
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _in_order(x: jax.Array, count: int) -> jax.Array:
    """Returns results (ticks, stages, L / stages, B / count, ...) as (L, B, ...).

    Micro-batch m is in stage s at tick m + s.
    """
    # Each (L / S, M, B / M, ...)
    of_stages = [jnp.moveaxis(x[s : s + count, s], 1, 0) for s in range(x.shape[1])]
    # (L, M, B / M, ...) to (L, B, ...).
    return jax.vmap(_join)(jnp.concatenate(of_stages))


def _placed(x: jax.Array) -> jax.Array:
    return constrain(x, "pipeline", BATCH_AXES, *([None] * (x.ndim - 2)))
