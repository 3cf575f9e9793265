"""Evaluation and prediction: every example of a split once."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from lsm import processes
from lsm.data import Prefetcher
from lsm.evaluate import compute, init, pictures, update
from lsm.files import atomic_write
from lsm.mesh import place
from lsm.metrics import Weighted
from lsm.train.goodput import Clock
from lsm.train.program import evaluated
from lsm.train.state import TrainState
from lsm.train.trainer import Trainer

_IN_FLIGHT = 4
"""Batches dispatched and not read yet: this many are held on the devices."""


def evaluate(
    trainer: Trainer,
    state: TrainState,
    split: str,
    clock: Clock,
    workdir: pathlib.Path | None = None,
    final: bool = False,
    leaves: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Returns the task's figures over all of a split; the padding of its last batch weighs 0.

    Args:
      trainer: gives the batches, their compiled evaluation, and the metrics that are computed
        here on the host.
      state: what to evaluate: its parameters and model state, or their moving averages.
      split: "validation" or "test".
      clock: books the first dispatch as "compile", the rest as "evaluation".
      workdir: where the pictures of the metrics are written; None draws none.
      final: with the metrics of the end, too.
      leaves: is asked after each batch; where it says so, None is returned.

    Raises:
      TrainingError: a picture cannot be written.
    """
    metrics = trainer.metrics + (trainer.final if final else ())
    function = trainer.program.finish if final else trainer.program.evaluate
    totals: dict[str, Weighted] = {}
    accumulators = init(metrics)
    with clock("evaluation"):
        for part, seen in _dispatched(trainer, function, state, split, clock):
            totals = total([totals, part])
            if metrics:
                accumulators = update(metrics, accumulators, seen["predictions"], seen["batch"])
            if leaves():
                return None
        if workdir is not None and processes.is_first():
            for name, picture in pictures(metrics, accumulators).items():
                atomic_write(workdir / name, picture)
        return trainer.experiment.task.summary(totals) | compute(metrics, accumulators)


def evaluate_all(
    trainer: Trainer, state: TrainState, clock: Clock, workdir: pathlib.Path
) -> dict[str, dict[str, float]]:
    """Returns the figures of a run's end, by split; pictures in `workdir` are of the last split."""
    last = [*trainer.evaluation][-1:]
    return {
        split: evaluate(trainer, state, split, clock, workdir if split in last else None, True)
        for split in trainer.evaluation
    }


def predict(trainer: Trainer, state: TrainState, split: str) -> Iterator[dict[str, np.ndarray]]:
    """Yields the task's predictions of every example of a split, in order, batch by batch.

    Rows that only fill up the last batch are left out. Arguments are those of `evaluate`.
    """
    batches = trainer.evaluation[split]
    left = len(batches.dataset)
    for predictions in _dispatched(trainer, trainer.program.predict, state, split, Clock()):
        yield {name: x[:left] for name, x in predictions.items()}
        left -= batches.batch_size


def _dispatched(
    trainer: Trainer, function: Callable, state: TrainState, split: str, clock: Clock
) -> Iterator[Any]:
    """Yields what `function` gives for each batch, on the host, a few batches late."""
    batches, pending = trainer.evaluation[split], []
    held, step = evaluated(state), jax.device_get(state.step)
    workers = trainer.experiment.data.workers
    with Prefetcher(batches.batch_at, range(len(batches)), workers) as prefetcher:
        for number, batch in enumerate(prefetcher):
            batch = place(batch, trainer.program.batch)
            with clock("evaluation" if number else "compile"):
                pending.append(function(*held, batch, np.int32(number), step))
            # Read late: while the host waits for one batch, the devices have the next ones.
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
