"""The training state: a pytree of arrays, and nothing else."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lsm.optim import with_masks, with_model_state
from lsm.params import flat, path_name
from lsm.rng import stream
from lsm.tasks import CONSTANTS, Batch, ModelState, Params, Task
from lsm.tasks.base import pair

MASKS = "masks/"
"""What the paths of masks begin with, among arrays that a start takes."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      step: int32 scalar, the number of updates made.
      params: parameters, float32 unless `train.params` says otherwise.
      model_state: the model's other collections, `lsm.tasks.CONSTANTS` among them.
      opt_state: the state of the Optax chain.
    """

    step: jax.Array
    params: Params
    model_state: ModelState
    opt_state: Any


def init_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    seed: int,
    dtype: str = "float32",
    taken: Mapping[str, jax.Array] = MappingProxyType({}),
) -> TrainState:
    """Returns the state at step 0: a pure function of the seed, the batch's shapes, and `taken`.

    The optimiser sees float32 parameters; the state holds them in `dtype`.

    Args:
      task: gives parameters and model state.
      optimizer: its state is made for them.
      batch: columns; only their shapes count.
      seed: of the parameters.
      dtype: of the parameters in the state.
      taken: arrays that replace what the task drew, by path: "params/head/kernel",
        "batch_stats/BatchNorm_0/mean". They are cast to its dtypes. And masks of what is pruned
        from the start: "masks/head/kernel", bool.
    """
    params, model_state = pair("init", task.init(stream(seed, "params"), batch))
    drawn = {"params": params, **model_state}
    drawn = jax.tree_util.tree_map_with_path(
        lambda path, x: taken[p].astype(x.dtype) if (p := path_name(path)) in taken else x,
        jax.tree.map(jnp.asarray, drawn),
    )
    params = drawn.pop("params")
    masks = {p.removeprefix(MASKS): x for p, x in taken.items() if p.startswith(MASKS)}
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.where(masks[p], x, 0) if (p := path_name(path)) in masks else x, params
    )
    changing = {name: tree for name, tree in drawn.items() if name != CONSTANTS}
    opt_state = with_model_state(optimizer.init(params), changing, params)
    opt_state = with_masks(opt_state, masks) if masks else opt_state
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    return TrainState(jnp.int32(0), params, drawn, opt_state)


def finite(state: TrainState) -> dict[str, jax.Array]:
    """Returns of every float array, by its path, whether all of it is finite: bool scalars.

    Constants are left out, since a mask may hold infinities. So may a scalar of the optimiser's,
    which has to be a number only: the best loss of `ReduceOnPlateau` begins at infinity.
    """
    changing = {name: tree for name, tree in state.model_state.items() if name != CONSTANTS}
    return {
        path: ~jnp.isnan(x)
        if path.startswith("opt_state/") and not x.shape
        else jnp.isfinite(x).all()
        for path, x in flat(dataclasses.replace(state, model_state=changing)).items()
        if jnp.issubdtype(x.dtype, jnp.inexact)
    }
