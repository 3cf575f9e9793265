"""The splits that are evaluated: opened, and compared with what is trained on."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lsm.config import Experiment
from lsm.data import Columns, Dataset, EvalBatches
from lsm.data.like import like
from lsm.errors import DataError, LsmError, MeshError, shortened
from lsm.mesh import batch_ways, local_rows
from lsm.rng import streams
from lsm.tasks import Classification, Task
from lsm.train.program import Program


def evaluation_batches(
    experiment: Experiment,
    program: Program,
    sample: Mapping[str, np.ndarray],
    trained: Dataset,
    data_dir: os.PathLike | str | None,
) -> dict[str, EvalBatches]:
    """Opens and checks the splits that are evaluated, validation first.

    Args:
      experiment: what is run.
      program: its compiled functions.
      sample: a batch of training, of any rows.
      trained: the examples that are trained on.
      data_dir: where the data is.

    Raises:
      MeshError: a batch does not divide over the devices.
      DataError: a split is not there, or its examples are not what the task and the model need.
    """
    data, size = experiment.data, experiment.evaluation.batch_size or experiment.train.batch_size
    ways = batch_ways(program.mesh)
    if size % ways:
        raise MeshError(f"evaluation.batch_size: {size} does not divide over {ways} devices.")
    rows, evaluation = local_rows(program.batch, size), {}
    for split, spec in (("validation", data.validation), ("test", data.test)):
        if not spec:
            continue
        # A file of whole numbers alone is one of whole numbers, whatever others hold.
        dataset = like(data.source.open(spec, data_dir), trained.spec)
        check_pixels(f"data.{split}", experiment.task.plain, dataset.spec, trained.spec)
        batches = EvalBatches(dataset, size, rows, data.evaluate)
        first = dataclasses.replace(batches, dataset=batches.dataset.by_example()).batch_at(0)
        experiment.task.check(first)
        _check_shapes(experiment, program, split, batches, first, sample)
        evaluation[split] = batches
    return evaluation


def abstract_means(experiment: Experiment, program: Program, batch: Mapping[str, Any]) -> Any:
    """Returns the shapes of what an evaluation gives for a batch, which is not computed."""
    task, state = experiment.task, program.abstract_state
    rngs = jax.eval_shape(lambda: streams(task.streams, experiment.train.seed, 0))
    return jax.eval_shape(task.evaluate, state.params, state.model_state, batch, rngs, state.step)


def reads_pixels(task: Task) -> bool:
    """Says whether a task divides whole numbers by 255."""
    return getattr(type(task), "inputs", None) is Classification.inputs


def check_pixels(told: str, task: Task, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raises DataError for fractions where training divides whole numbers by 255.

    Args:
      told: where they are, for the error.
      task: what is trained.
      here: columns, or their specs, by name.
      there: those of training.
    """
    name = getattr(task, "input", None)
    if not (reads_pixels(task) and name in here and name in there):
        return
    given, known = here[name].dtype, there[name].dtype
    if np.issubdtype(known, np.integer) and np.issubdtype(given, np.floating):
        raise DataError(
            f"{told}: column {name!r} is {given}, and {known} in training, where it is divided by "
            "255; one kind is needed."
        )


def _check_shapes(
    experiment: Experiment,
    program: Program,
    split: str,
    batches: EvalBatches,
    first: Columns,
    sample: Mapping[str, np.ndarray],
) -> None:
    """Raises DataError where the model does not take examples of other shapes than training's."""
    other = [
        f"{name!r} is {x.shape[1:]}, and {sample[name].shape[1:]} in training"
        for name, x in first.items()
        if name in sample and x.shape[1:] != sample[name].shape[1:]
    ]
    # Of texts each batch is as wide as its bucket.
    if not other or batches.dataset.encoder is not None:
        return
    try:
        abstract_means(experiment, program, first)
    except LsmError:
        raise
    except Exception as error:  # the model's own, or a library's
        told = shortened(str(error).splitlines()[0], 200)
        raise DataError(
            f"data.{split}: column {other[0]}, and the model does not take it: {told}"
        ) from error
