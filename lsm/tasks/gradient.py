"""The gradient of a step: a sum for each micro-batch, added up, divided once."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lsm.mesh import split_rows
from lsm.metrics import Weighted
from lsm.tasks.base import Batch, ModelState, Params, Rngs, Task

Metrics = dict[str, Weighted]


class GradientSum(NamedTuple):
    """The sum of the gradients of a batch's examples, and what came with it.

    Attributes:
      grads: tree like the parameters.
      metrics: sums and weights over the batch; "loss" is one of them.
      model_state: the collections that changed.
    """

    grads: Params
    metrics: Metrics
    model_state: ModelState


GradientFn = Callable[[Params, ModelState, Batch, Rngs, jax.Array], GradientSum]
"""(params, model_state, batch, rngs, step) -> GradientSum; pure."""


@dataclasses.dataclass(frozen=True)
class MeanGradient:
    """The gradient of the mean loss: sum over examples / sum of their weights.

    What replaces it (gradients clipped by example, say) overrides both methods; accumulation over
    micro-batches and the division are the step's.
    """

    def sums(self, task: Task) -> GradientFn:
        """Returns the function that sums the gradients of a (micro-)batch."""

        def gradient(params, model_state, batch, rngs, step) -> GradientSum:
            grads, (metrics, changed) = jax.grad(task.loss, has_aux=True)(
                params, model_state, batch, rngs, step
            )
            return GradientSum(grads, metrics, changed)

        return gradient

    def divisor(self, metrics: Metrics) -> jax.Array | float:
        """Returns what the sum over the whole batch is divided by; 0 counts as 1."""
        return metrics["loss"].weight


def accumulate(gradient: GradientFn, steps: int, unroll: bool = False) -> GradientFn:
    """Returns `gradient` summed over `steps` micro-batches, one after the other.

    Sums of gradients, losses and weights add up to the whole batch's, however unevenly the weights
    fall. Micro-batch i holds rows i, i + steps, ...: on a mesh every device then keeps its own
    rows. It draws from fold_in(key, i) of each stream. Model state (batch norm) sees micro-batches.

    Args:
      gradient: of one micro-batch.
      steps: micro-batches; must divide the rows.
      unroll: write the micro-batches out instead of looping over them.
    """

    def gradient_sum(params, model_state, batch, rngs, step) -> GradientSum:
        def one(carry, micro):
            total, state = carry
            index, rows = micro
            # Else all micro-batches would drop the same.
            keys = {name: jax.random.fold_in(key, index) for name, key in rngs.items()}
            part = gradient(params, {**model_state, **state}, rows, keys, step)
            total = jax.tree.map(jnp.add, total, (part.grads, part.metrics))
            return (total, part.model_state), None

        micro_batches = jax.tree.map(lambda x: split_rows(x, steps), dict(batch))
        # The shapes of what is summed, without computing it: only the task knows its metrics.
        first = jax.tree.map(lambda x: x[0], micro_batches)
        shapes = jax.eval_shape(gradient, params, model_state, first, rngs, step)
        # Sums are float32, whatever dtype the gradients have.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), (shapes.grads, shapes.metrics))
        # The collections that change go from one micro-batch to the next; the others stay outside.
        start = zeros, {name: model_state[name] for name in shapes.model_state}
        numbered = jnp.arange(steps), micro_batches
        ((grads, metrics), state), _ = jax.lax.scan(one, start, numbered, unroll=unroll)
        return GradientSum(grads, metrics, state)

    return gradient_sum
