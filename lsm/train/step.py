"""The train step: pure, with no jit, no mesh and no I/O inside."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lsm.errors import ConfigError
from lsm.metrics import Weighted
from lsm.optim import averages_model_state
from lsm.params import flat
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
from lsm.tasks.base import pair
from lsm.train.state import TrainState, finite

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
      optimizer: an Optax chain; its update also receives `value`, the mean loss, `weight`, that of
        all examples, and the new `model_state`, if there is one.
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
        params = state.params
        rngs = streams(task.streams, seed, state.step)
        sums, metrics, new = gradient_sum(params, state.model_state, batch, rngs, state.step)
        grads = _divide(sums, params, gradient.divisor(metrics))
        loss = metrics["loss"]
        extra = {"value": loss.mean, "weight": loss.weight}
        if averages_model_state(state.opt_state):
            extra["model_state"] = {**state.model_state, **new}
        updates, opt_state = update(grads, state.opt_state, params, **extra)
        params = optax.apply_updates(params, updates)
        params, model_state = _after_update(task, state, params, new)
        return TrainState(state.step + 1, params, model_state, opt_state), metrics

    return step


def _divide(sums: Params, params: Params, divisor: jax.Array | float) -> Params:
    """Returns the mean gradient, float32; raises ConfigError where `sums` are not of `params`."""
    _require_like("train.gradient", params, sums, jnp.shape)
    scale = 1 / jnp.where(divisor == 0, 1, divisor)
    return jax.tree.map(lambda g: g.astype(jnp.float32) * scale, sums)


def _after_update(
    task: Task, before: TrainState, params: Params, changed: ModelState
) -> tuple[Params, ModelState]:
    """Calls the task's hook; raises ConfigError where it leaves other arrays than there were."""
    model_state = {**before.model_state, **changed}
    updated = task.after_update(params, model_state, before.step + 1)
    params, model_state = pair("after_update", updated)
    old = {"params": before.params, **before.model_state}
    new = {"params": params, **model_state}
    _require_like("task.after_update", old, new, lambda x: f"{x.shape} {x.dtype}")
    constants = [jax.tree.leaves(tree.get(CONSTANTS)) for tree in (old, new)]
    if any(a is not b for a, b in zip(*constants, strict=True)):
        raise ConfigError(f"task.after_update: it changes the collection {CONSTANTS!r}.")
    return params, model_state


def _require_like(field: str, wanted: Any, given: Any, kind: Callable[[Any], Any]) -> None:
    """Raises a ConfigError that names `field` and the first array which is not of its `kind`."""
    wanted, given = flat(wanted), flat(given)
    for path in dict.fromkeys([*wanted, *given]):
        must, now = (kind(x[path]) if path in x else "absent" for x in (wanted, given))
        if must != now:
            raise ConfigError(f"{field}: {path!r} is {now}; it must be {must}, as before.")


def skip_nonfinite(step: Step) -> Step:
    """Wraps a step so that an update which is not finite changes nothing but the counts of steps.

    The step is skipped where the loss or anything in the new state is NaN or infinite (see
    `lsm.train.state.finite`); the metric "skipped" is the share of steps skipped, and the other
    metrics of such a step weigh 0. Schedules count it, so that they end when the run does.
    """

    def guarded(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch)
        sound = jnp.isfinite(metrics["loss"].sum)
        for finite_leaf in finite(new).values():
            sound &= finite_leaf
        kept = dataclasses.replace(_chosen(sound, new, state), step=new.step)
        metrics = jax.tree.map(lambda x: jnp.where(sound, x, 0), metrics)
        skipped = Weighted(1 - sound.astype(jnp.float32), jnp.float32(1))
        return kept, metrics | {"skipped": skipped}

    return guarded


def _chosen(sound: jax.Array, new: Any, old: Any) -> Any:
    """Returns the new tree where it is sound, else the old one, in which schedules go on."""

    def choose(new: Any, old: Any) -> Any:
        if isinstance(new, optax.ScaleByScheduleState):
            return new
        if isinstance(new, optax.InjectStatefulHyperparamsState):
            return _injected(sound, new, old)
        return jnp.where(sound, new, old)

    kinds = (optax.ScaleByScheduleState, optax.InjectStatefulHyperparamsState)
    return jax.tree.map(choose, new, old, is_leaf=lambda node: isinstance(node, kinds))


def _injected(sound: jax.Array, new: Any, old: Any) -> Any:
    """Returns what `_chosen` does of `optax.inject_hyperparams`: the values by the count go on.

    Others, such as one that follows the loss, may have become NaN.
    """
    chosen = _chosen(sound, new._asdict(), old._asdict())
    for name, state in new.hyperparams_states.items():
        if all(jnp.issubdtype(x.dtype, jnp.integer) for x in jax.tree.leaves(state)):
            chosen["hyperparams_states"][name] = state
            chosen["hyperparams"][name] = new.hyperparams[name]
    return type(new)(**chosen)
