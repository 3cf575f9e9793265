"""Evaluation: every example of a split once, totals as (sum, weight)."""

from typing import Any

import jax

from lsm.data import EvalBatches, Prefetcher
from lsm.metrics import Weighted
from lsm.sharding import place
from lsm.train.goodput import Clock
from lsm.train.program import Program
from lsm.train.state import TrainState


def evaluate(
    program: Program,
    params: Any,
    state: TrainState,
    batches: EvalBatches,
    clock: Clock | None = None,
) -> dict[str, float]:
    """Returns the task's figures over all of `batches`, whose padding weighs 0.

    Args:
      program: gives the compiled evaluation and the task's summary.
      params: what to evaluate: the state's parameters, or their moving average.
      state: gives the model state.
      batches: the split, padded to whole batches.
      clock: is booked on: the first dispatch as "compile", the rest as "evaluation".
    """
    clock, pending = clock or Clock(), []
    with Prefetcher(batches.batch_at, 0, len(batches)) as prefetcher:
        for batch in prefetcher:
            batch = place(batch, program.batch)
            if not pending:
                clock.book("evaluation")
            pending.append(program.evaluate(params, state.model_state, batch))
            if len(pending) == 1:
                clock.book("compile")
            if len(pending) > 4:  # bounds the batches held on the devices
                jax.block_until_ready(pending[-4])
    figures = program.summary(total(pending))
    clock.book("evaluation")
    return figures


def total(parts: list[dict[str, Weighted]]) -> dict[str, Weighted]:
    """Adds up the totals of many batches, in float64 on the host."""
    totals: dict[str, Weighted] = {}
    for part in jax.device_get(parts):
        for name, (value, weight) in part.items():
            old = totals.get(name, Weighted(0.0, 0.0))
            totals[name] = Weighted(old.sum + float(value), old.weight + float(weight))
    return totals
