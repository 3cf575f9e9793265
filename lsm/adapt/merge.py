"""Adapters added to the kernels that they stand beside: a run becomes one of the plain model."""

import dataclasses
import os
from typing import Any, Literal

import jax

from lsm.config import Experiment
from lsm.errors import ConfigError
from lsm.models import Lora
from lsm.tasks import (
    CONSTANTS,
    DirectPreference,
    LanguageModelling,
    ModelState,
    Params,
    Task,
)
from lsm.train.derived import made_of, new_folder, write_run
from lsm.train.trained import Trained, load


def merge(
    workdir: os.PathLike | str,
    out: os.PathLike | str,
    *,
    experiment: Experiment | None = None,
    step: int | Literal["best", "last"] = "best",
    devices: list[jax.Device] | None = None,
) -> int:
    """Writes the model of a run of adapters as a run of the plain model; returns its step.

    The task is the run's, of the plain model; where preferences were learnt, it is language
    modelling of prompts and better answers, all of their tokens. Parameters are float32, and there
    is no optimiser state.

    Args:
      workdir: folder of the run.
      out: new folder.
      experiment: what the run ran; None finds it, see `lsm.load`.
      step: which checkpoint, see `lsm.load`.
      devices: where it is computed; None is all of them.

    Raises:
      ConfigError: the run's model is no `Lora`, or there is a run in `out` already.
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    target = new_folder(out)
    run = load(workdir, experiment=experiment, step=step, devices=devices)
    if not isinstance(run.experiment.task.model, Lora):
        kind = type(run.experiment.task.model).__name__
        raise ConfigError(f"--workdir: {workdir} is a run of {kind}, which has no adapters.")
    plain = dataclasses.replace(run.experiment, task=_plain(run.experiment.task), start=None)
    write_run(workdir, target, plain, run.step, *_merged(run, plain))
    return run.step


def _plain(task: Task) -> Task:
    """The task of the model without adapters, which holds no reference."""
    if isinstance(task, DirectPreference):
        return LanguageModelling(model=task.model.model, tokens=task.chosen, chunks=task.chunks)
    return dataclasses.replace(task, model=task.model.model)


def _merged(run: Trained, plain: Experiment) -> tuple[Params, ModelState]:
    """Parameters and model state of the plain model, laid out on the run's mesh by its rules."""
    state, lora = dict(run.model_state), run.experiment.task.model
    constants = dict(state.pop(CONSTANTS))

    def merged(params: Any, constants: Any) -> dict[str, Any]:
        return {"params": lora.merged(params, constants)}

    return made_of(run, plain, merged, run.params, constants)["params"], state
