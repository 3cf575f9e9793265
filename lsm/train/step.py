"""The train step: pure, with no jit, no mesh and no I/O inside."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lsm.axes import split_rows
from lsm.metrics import Weighted
from lsm.rng import stream
from lsm.tasks import Batch, ModelState, Params, Task
from lsm.train.state import TrainState

Metrics = dict[str, Weighted]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Gradient(NamedTuple):
    """The gradient of the mean loss over a batch, and what came with it."""

    grads: Params
    metrics: Metrics
    model_state: ModelState


GradientFn = Callable[[Params, ModelState, Batch, jax.Array], Gradient]
"""(params, model_state, batch, key) -> Gradient; what DP-SGD and the like replace."""


def mean_gradient(task: Task) -> GradientFn:
    """Returns the gradient of sum(loss) / sum(weight) over the batch."""

    def gradient(params: Params, model_state: ModelState, batch: Batch, key: jax.Array):
        grads, (metrics, new_state) = jax.grad(task.loss, has_aux=True)(
            params, model_state, batch, key
        )
        return Gradient(_divide(grads, metrics["loss"].weight), metrics, new_state)

    return gradient


def accumulated_gradient(task: Task, steps: int, unroll: bool = False) -> GradientFn:
    """Returns `mean_gradient` computed over `steps` micro-batches, one after the other.

    With `unroll` there is no loop in the program: XLA's CPU back end runs convolutions in a loop
    ten times slower.

    Sums of losses and of weights are added up and divided once, so the result is the whole
    batch's, however unevenly the weights fall. Micro-batch i holds rows i, i + steps, ...: on a
    mesh every device then keeps its own rows. Model state (batch norm) sees micro-batches.
    """

    def gradient(params: Params, model_state: ModelState, batch: Batch, key: jax.Array):
        def one(carry, micro):
            total, state = carry
            index, micro_batch = micro
            grads, (metrics, state) = jax.grad(task.loss, has_aux=True)(
                params, state, micro_batch, jax.random.fold_in(key, index)
            )
            return (jax.tree.map(jnp.add, total, (grads, metrics)), state), None

        micro_batches = jax.tree.map(lambda x: split_rows(x, steps), dict(batch))
        first = jax.tree.map(lambda x: x[0], micro_batches)
        _, aux = jax.eval_shape(task.loss, params, model_state, first, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), (params, aux.metrics))  # float32
        ((grads, metrics), new_state), _ = jax.lax.scan(
            one, (zeros, model_state), (jnp.arange(steps), micro_batches), unroll=unroll
        )
        return Gradient(_divide(grads, metrics["loss"].weight), metrics, new_state)

    return gradient


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int = 0,
    accumulation: int = 1,
    unroll: bool = False,
    gradient: GradientFn | None = None,
) -> Step:
    """Returns the pure function (state, batch) -> (state, metrics).

    Args:
      task: gives the loss.
      optimizer: an Optax chain; its update also receives `value`, the mean loss.
      seed: of the random streams; dropout at step n draws from fold_in(seed, "dropout", n).
      accumulation: micro-batches that the batch is split into; must divide it.
      unroll: write the micro-batches out instead of looping over them.
      gradient: replaces the mean gradient, and with it the accumulation.
    """
    if gradient is None:
        gradient = mean_gradient(task)
        if accumulation > 1:
            gradient = accumulated_gradient(task, accumulation, unroll)
    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = stream(seed, "dropout", state.step)
        grads, metrics, model_state = gradient(state.params, state.model_state, batch, key)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, value=metrics["loss"].mean
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, model_state, opt_state), metrics

    return step


def skip_nonfinite(step: Step) -> Step:
    """Wraps a step so that an update which is not finite changes nothing but the step count.

    The step is skipped where the loss or any new parameter is NaN or infinite; the metric
    "skipped" is the share of steps skipped, and the other metrics of such a step weigh 0.
    """

    def guarded(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch)
        finite = jnp.isfinite(metrics["loss"].sum)
        for leaf in jax.tree.leaves(new.params):
            finite &= jnp.isfinite(leaf).all()
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        kept = TrainState(new.step, kept.params, kept.model_state, kept.opt_state)
        metrics = jax.tree.map(lambda x: jnp.where(finite, x, 0), metrics)
        skipped = Weighted(1 - finite.astype(jnp.float32), jnp.float32(1))
        return kept, metrics | {"skipped": skipped}

    return guarded


def _divide(grads: Params, weight: jax.Array) -> Params:
    scale = 1 / jnp.where(weight == 0, 1, weight)
    return jax.tree.map(lambda g: g.astype(jnp.float32) * scale, grads)
