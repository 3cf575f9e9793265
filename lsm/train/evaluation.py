"""Evaluation and prediction: every example of a split once."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from lsm.data import EvalBatches, Prefetcher
from lsm.evaluate import Metric, compute, init, update
from lsm.mesh import place
from lsm.metrics import Weighted
from lsm.train.goodput import Clock
from lsm.train.program import Program, evaluated_params
from lsm.train.state import TrainState
from lsm.train.trainer import Trainer

_IN_FLIGHT = 4
"""Batches dispatched and not read yet: this many are held on the devices."""


def evaluate(
    program: Program,
    params: Any,
    state: TrainState,
    batches: EvalBatches,
    metrics: tuple[Metric, ...] = (),
    clock: Clock | None = None,
) -> dict[str, float]:
    """Returns the task's figures over all of `batches`, whose padding weighs 0.

    Args:
      program: gives the compiled evaluation and the task's summary.
      params: what to evaluate: the state's parameters, or their moving average.
      state: gives the model state.
      batches: the split, padded to whole batches.
      metrics: figures that are not means, computed here from predictions, batch by batch.
      clock: is booked on: the first dispatch as "compile", the rest as "evaluation".
    """
    clock = clock or Clock()
    totals: dict[str, Weighted] = {}
    accumulators = init(metrics)
    for part, seen in _dispatched(program.evaluate, program, params, state, batches, clock):
        totals = total([totals, part])
        if metrics:
            accumulators = update(metrics, accumulators, seen["predictions"], seen["batch"])
    figures = program.summary(totals) | compute(metrics, accumulators)
    clock.book("evaluation")
    return figures


def evaluate_all(
    trainer: Trainer, state: TrainState, clock: Clock | None = None
) -> dict[str, dict[str, float]]:
    """Returns the figures of every split, by split."""
    params, metrics = evaluated_params(state), trainer.experiment.evaluation.metrics
    return {
        split: evaluate(trainer.program, params, state, batches, metrics, clock)
        for split, batches in trainer.evaluation.items()
    }


def predict(
    program: Program, params: Any, state: TrainState, batches: EvalBatches
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the task's predictions of every example of `batches`, in order, batch by batch.

    Rows that only fill up the last batch are left out. Arguments are those of `evaluate`.
    """
    left = len(batches.dataset)
    for predictions in _dispatched(program.predict, program, params, state, batches, Clock()):
        yield {name: x[:left] for name, x in predictions.items()}
        left -= batches.batch_size


def _dispatched(function, program, params, state, batches, clock) -> Iterator[Any]:
    """Yields what `function` gives for each batch, on the host, a few batches late."""
    step, pending = jax.device_get(state.step), []
    with Prefetcher(batches.batch_at, 0, len(batches)) as prefetcher:
        for number, batch in enumerate(prefetcher):
            batch = place(batch, program.batch)
            if number == 0:
                clock.book("evaluation")
            pending.append(function(params, state.model_state, batch, np.int32(number), step))
            if number == 0:
                clock.book("compile")
            if len(pending) > _IN_FLIGHT:
                yield jax.device_get(pending.pop(0))
        for result in pending:
            yield jax.device_get(result)


def total(parts: list[dict[str, Weighted]]) -> dict[str, Weighted]:
    """Adds up the totals of many batches, in float64 on the host."""
    totals: dict[str, Weighted] = {}
    for part in jax.device_get(parts):
        for name, (value, weight) in part.items():
            old = totals.get(name, Weighted(0.0, 0.0))
            totals[name] = Weighted(old.sum + float(value), old.weight + float(weight))
    return totals
