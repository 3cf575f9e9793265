"""The table of a state's arrays, before anything is compiled or allocated."""

import math
import os
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from lsm.config import Experiment
from lsm.data import Shuffled, TrainBatches
from lsm.durations import Horizon
from lsm.errors import DataError
from lsm.train.program import build

HEADINGS = ("path", "shape", "dtype", "spec", "bytes a device")


def state_table(
    experiment: Experiment,
    data_dir: os.PathLike | str | None = None,
    devices: list[jax.Device] | None = None,
) -> str:
    """Returns every array of the training state: path, shape, dtype, spec, bytes on each device.

    Lines with totals follow, for parameters, optimiser state and all. The data is opened only
    where its source cannot tell its shapes without.

    Raises:
      MeshError: the mesh does not fit the devices, the batch or an array, which is named.
      DataError: the shapes of the data are not known, and it is not there.
    """
    batch, horizon = abstract_batch(experiment, data_dir)
    rows = build(experiment, horizon, batch, devices).table()
    lines = [HEADINGS]
    for path, shape, dtype, spec, size in rows:
        lines.append((path, "x".join(map(str, shape)), dtype, spec, f"{size:,}"))
    for title, prefix in (
        ("parameters", "params"),
        ("optimiser state", "opt_state"),
        ("total", ""),
    ):
        part = [row for row in rows if row[0].startswith(prefix)]
        count = sum(math.prod(row[1]) for row in part)
        size = sum(row[-1] for row in part)
        lines.append((title, f"{count:,}", "", f"{len(part)} arrays", f"{size:,}"))
    return "\n".join(_aligned(lines))


def _aligned(lines: list[tuple[str, ...]]) -> Iterator[str]:
    """Columns padded to the widest cell; the last, of numbers, on the left."""
    *widths, last = (max(map(len, column)) for column in zip(*lines, strict=True))
    for *cells, number in lines:
        padded = [f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)]
        yield "  ".join([*padded, f"{number:>{last}}"])


def abstract_batch(
    experiment: Experiment, data_dir: os.PathLike | str | None = None
) -> tuple[dict[str, jax.ShapeDtypeStruct], Horizon]:
    """Returns the shapes of a training batch, and the run's length.

    The data itself is opened only where the length is in epochs, where augmentations may change
    shapes, where examples are not simply shuffled, or where the source knows its shapes no other
    way.

    Raises:
      DataError: the data is needed and is not there, or has no one shape.
    """
    data, train = experiment.data, experiment.train
    if train.epochs is None and not data.augment and data.sampling == Shuffled():
        spec: Mapping = data.source.spec(data.train, data_dir)
        examples = train.examples or train.steps * train.batch_size  # an epoch: not known
    else:
        opened = data.source.open(data.train, data_dir)
        sample = TrainBatches(
            opened, train.batch_size, train.seed, data.augment, np.arange(1), data.sampling
        ).batch_at(0)
        spec = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in sample.items()}
        examples = len(opened)
    ragged = [name for name, one in spec.items() if one.dtype == object]
    if ragged:
        raise DataError(f"data: column {ragged[0]!r} has no one shape; set data.source.size.")
    experiment.task.check({name: np.zeros((1, *x.shape), x.dtype) for name, x in spec.items()})
    shapes = {
        name: jax.ShapeDtypeStruct((train.batch_size, *one.shape), one.dtype)
        for name, one in spec.items()
    }
    return shapes, experiment.horizon(examples)
