"""The table of a state's arrays, before anything is compiled or allocated."""

import math
import os
from collections.abc import Iterator

import jax

from lsm.config import Experiment
from lsm.models.experts import mixtures
from lsm.train.program import build
from lsm.train.throughput import active_params
from lsm.train.trainer import abstract_batch

HEADINGS = ("path", "shape", "dtype", "spec", "bytes a device")


def state_table(
    experiment: Experiment,
    data_dir: os.PathLike | str | None = None,
    devices: list[jax.Device] | None = None,
) -> str:
    """Returns every array of the training state: path, shape, dtype, spec, bytes on each device.

    Lines with totals follow, for parameters, optimiser state and all, and with experts the
    parameters that a token meets. The data is opened only where its source cannot tell its shapes
    without.

    Raises:
      MeshError: the mesh does not fit the devices, the batch or an array, which is named.
      DataError: the shapes of the data are not known, and it is not there.
    """
    batch, horizon = abstract_batch(experiment, data_dir)
    program = build(experiment, horizon, batch, devices)
    rows = program.table()
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
    if mixtures(experiment.task):
        active = active_params(experiment.task, program.abstract_state.params)
        lines.append(("parameters that a token meets", f"{active:,}", "", "", ""))
    return "\n".join(_aligned(lines))


def _aligned(lines: list[tuple[str, ...]]) -> Iterator[str]:
    """Columns padded to the widest cell; the last, of numbers, on the left."""
    *widths, last = (max(map(len, column)) for column in zip(*lines, strict=True))
    for *cells, number in lines:
        padded = [f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)]
        yield "  ".join([*padded, f"{number:>{last}}"])
