"""What a network is trained on, to look at: the first batch as it gets it."""

import os
from collections.abc import Sequence

import jax
import numpy as np

from lsm.config import Experiment, schema
from lsm.data.inputs import Inputs
from lsm.data.sheet import sheet
from lsm.errors import ConfigError
from lsm.mesh import split_rows
from lsm.rng import streams
from lsm.tasks import Task
from lsm.train.trainer import train_batches

_PICTURES = 64


def preview(experiment: Experiment, data_dir: os.PathLike | str | None = None) -> bytes:
    """Returns the first training batch (of several micro-batches the first), as PNG.

    The pictures are what the model is called with, after all augmentation, with the task's `mean`
    and `std` undone; of other numbers than 0 to 1, the lowest is black and the highest white. At
    most 64, each over its label, or the shares of its classes.

    Raises:
      ConfigError: the task's inputs are no pictures.
      DataError: the data is not there, or is not what the task needs.
    """
    schema.check(experiment)
    task, train = experiment.task, experiment.train
    batches = train_batches(experiment, data_dir)
    batch = batches.batch_at(0)
    task.check(batch)

    def seen(batch):
        rngs = streams(task.streams, train.seed, 0)
        if train.accumulation > 1:  # as `lsm.tasks.accumulate` does
            batch = {name: split_rows(x, train.accumulation)[0] for name, x in batch.items()}
            rngs = {name: jax.random.fold_in(key, 0) for name, key in rngs.items()}
        batch = dict(task.augment(batch, rngs))
        return task.inputs(batch), batch

    numbers = {name: x for name, x in batch.items() if x.dtype != object}
    inputs, batch = jax.device_get(jax.jit(seen)(numbers))
    pictures = _pixels(task, inputs)[:_PICTURES]
    return sheet(
        pictures, _captions(task, batch, Inputs.of(batches.dataset).called(task))[: len(pictures)]
    )


def _pixels(task: Task, inputs: np.ndarray) -> np.ndarray:
    shape = getattr(inputs, "shape", type(inputs).__name__)
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] not in (1, 3):
        raise ConfigError(
            f"--mode=preview: the inputs of {type(task).__name__} are {shape}; pictures "
            "(B, H, W, 1 or 3) are needed."
        )
    inputs = inputs * np.asarray(getattr(task, "std", 1.0)) + np.asarray(getattr(task, "mean", 0.0))
    low, high = inputs.min(), inputs.max()
    if low < -1e-3 or high > 1.001:
        inputs = (inputs - low) / (high - low)
    return np.rint(inputs.clip(0, 1) * 255).astype(np.uint8)


def _captions(task: Task, batch: dict[str, np.ndarray], classes: Sequence[str] | None) -> list[str]:
    label = batch.get(getattr(task, "label", None))
    if label is None:
        return []
    names = dict(enumerate(classes or ()))
    if label.ndim == 1:
        return [names.get(number, str(number)) for number in label.tolist()]
    return [
        ", ".join(
            f"{names.get(number, str(number))} {shares[number]:.0%}"
            for number in np.argsort(-shares, kind="stable")[:2].tolist()
            if shares[number] >= 0.005
        )
        for shares in label
    ]
