"""The train step: pure, with no jit, no mesh and no I/O inside."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lsm.errors import ConfigError
from lsm.metrics import Weighted
from lsm.paths import flat
from lsm.rng import streams
from lsm.tasks import (
    CONSTANTS,
    Batch,
    MeanGradient,
    Metrics,
    ModelState,
    Params,
    Task,
    accumulate,
)
from lsm.train.state import TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int = 0,
    gradient: MeanGradient = MeanGradient(),
    accumulation: int = 1,
    unroll: bool = False,
) -> Step:
    """Returns the pure function (state, batch) -> (state, metrics).

    Args:
      task: gives the loss.
      optimizer: an Optax chain; its update also receives `value`, the mean loss.
      seed: of the random streams; dropout at step n draws from fold_in(seed, "dropout", n).
      gradient: how the gradient is made of the examples.
      accumulation: micro-batches that the batch is split into; must divide it.
      unroll: write the micro-batches out instead of looping over them.
    """
    gradient_sum = gradient.sums(task)
    if accumulation > 1:
        gradient_sum = accumulate(gradient_sum, accumulation, unroll)
    update = optax.with_extra_args_support(optimizer).update

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        params, count = state.params, state.step + 1
        rngs = streams(task.streams, seed, state.step)
        sums, metrics, new = gradient_sum(params, state.model_state, batch, rngs, state.step)
        grads = _divide(_like_params(params, sums), gradient.divisor(metrics))
        updates, opt_state = update(grads, state.opt_state, params, value=metrics["loss"].mean)
        params = optax.apply_updates(params, updates)
        updated = task.after_update(params, {**state.model_state, **new}, count)
        params, model_state = _like((state.params, state.model_state), updated)
        return TrainState(count, params, model_state, opt_state), metrics

    return step


def _like(before: tuple[Params, ModelState], after: Any) -> tuple[Params, ModelState]:
    """Returns `after`; a ConfigError names the first array that is of another kind than before.

    Of a constant, the very array must have come through.
    """
    if not isinstance(after, tuple) or len(after) != 2:
        raise ConfigError("task.after_update: it must return (params, model_state).")
    old, new = (flat({"params": params, **state}) for params, state in (before, after))
    for path in dict.fromkeys([*old, *new]):
        was, now = (_kind(arrays.get(path)) for arrays in (old, new))
        if was != now:
            raise ConfigError(
                f"task.after_update: {path!r} was {was} before the update and is {now} after it; "
                "structure, shapes and dtypes must stay."
            )
        if path.startswith(f"{CONSTANTS}/") and old[path] is not new[path]:
            raise ConfigError(f"task.after_update: it changes {path!r}, which is constant.")
    return after


def _kind(array: Any) -> str:
    return "not there" if array is None else f"{jnp.shape(array)} {jnp.result_type(array)}"


def _like_params(params: Params, sums: Params) -> Params:
    """Returns `sums`; a ConfigError names the first that is not of its parameter's shape."""
    old, new = flat(params), flat(sums)
    for path in dict.fromkeys([*old, *new]):
        was, now = (jnp.shape(x[path]) if path in x else "nothing" for x in (old, new))
        if was != now:
            raise ConfigError(
                f"train.gradient: its sum has {now} for parameter {path!r}, which has {was}."
            )
    return sums


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


def _divide(sums: Params, divisor: jax.Array | float) -> Params:
    scale = 1 / jnp.where(divisor == 0, 1, divisor)
    return jax.tree.map(lambda g: g.astype(jnp.float32) * scale, sums)
