"""Tables of a model's layers and of a state's arrays, before anything is compiled or allocated."""

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.config import Experiment
from lsm.models.experts import mixtures
from lsm.params import flat
from lsm.tasks import ModelState, Params
from lsm.train.program import build
from lsm.train.state import TrainState
from lsm.train.throughput import active_params, training_flops
from lsm.train.trainer import abstract_batch

HEADINGS = ("path", "shape", "dtype", "spec", "bytes a device")


def summary(experiment: Experiment, data_dir: os.PathLike | str | None = None) -> str:
    """Returns the layers of a model: path, class, output for B examples, and parameters of its own.

    Layers that are stacked stand once, for all of them. Lines with totals follow: parameters, and
    the model FLOPs of an example and of a step (`lsm.cost.model_flops`). Nothing is computed, and
    the data is opened only where its source cannot tell its shapes without.

    Raises:
      DataError: the shapes of the data are not known, and it is not there.
    """
    task, rows = experiment.task, experiment.train.batch_size
    batch, _ = abstract_batch(experiment, data_dir)

    def init() -> tuple[Params, ModelState]:
        row = {name: jnp.zeros((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}
        return task.init(jax.random.key(0), row)

    called: dict[str, tuple[str, str]] = {}
    with nn.intercept_methods(functools.partial(_look, called)):
        state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), *jax.eval_shape(init), ())
    flops = training_flops(task, state, batch)
    lines = [("layer", "class", "output", "parameters"), *_layers(called, flat(state.params))]
    for title, count in (
        ("parameters", sum(x.size for x in jax.tree.leaves(state.params))),
        ("FLOPs of an example, forward", round(flops.forward / rows)),
        (f"FLOPs of a step of {rows:,}", round(flops.total)),
    ):
        lines.append((title, "", "", f"{count:,}"))
    return "\n".join(_aligned(lines))


def _look(
    called: dict[str, tuple[str, str]], call: Callable, args: Any, kwargs: Any, context: Any
) -> Any:
    """Calls a module; notes its class and the shape of its output by its path."""
    outputs, module = call(*args, **kwargs), context.module
    if context.method_name == "__call__" and module.path:
        # The last time it is called: blocks that are scanned are tried with a token first.
        shape = next((x.shape for x in jax.tree.leaves(outputs)), ())
        told = f"({', '.join(['B', *map(str, shape[1:])])})"
        called["/".join(module.path)] = (type(module).__name__, told)
    return outputs


def _layers(
    called: Mapping[str, tuple[str, str]], arrays: Mapping[str, jax.ShapeDtypeStruct]
) -> Iterator[tuple[str, str, str, str]]:
    """Yields a row for each module that was called, and for what else has parameters."""
    owned: dict[str, int] = {}
    for path, x in arrays.items():
        owner = path.rpartition("/")[0] or path
        owned[owner] = owned.get(owner, 0) + x.size
    for name, told in called.items():
        # A module in a stack does not know of the stack, whose path stands before its own; of two
        # stacks nobody says which was called.
        paths = [name] if name in owned else [p for p in owned if p.endswith(f"/{name}")]
        if len(paths) < 2:
            path = paths[0] if paths else name
            yield path, *told, f"{owned.pop(path, 0):,}"
    for path, count in owned.items():
        yield path, "", "", f"{count:,}"


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
