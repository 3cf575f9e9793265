"""The training state: a pytree of arrays, and nothing else."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lsm.rng import stream
from lsm.tasks import Batch, ModelState, Params, Task


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      step: int32 scalar, the number of updates made.
      params: parameters, float32 unless `train.params` says otherwise.
      model_state: the model's other collections.
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
) -> TrainState:
    """Returns the state at step 0: a pure function of the seed and of the batch's shapes.

    The optimiser sees float32 parameters; the state holds them in `dtype`.
    """
    params, model_state = task.init(stream(seed, "params"), batch)
    opt_state = optimizer.init(params)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    return TrainState(jnp.int32(0), params, model_state, opt_state)
