"""Adapters added to the kernels that they stand beside: a run becomes one of the plain model."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lsm.config import Experiment, schema
from lsm.config.origin import CONFIG, ORIGIN, Origin, origin_of
from lsm.errors import ConfigError
from lsm.files import atomic_write, expanded
from lsm.mesh import jit
from lsm.models import Lora
from lsm.run.checkpoint import Checkpoints
from lsm.tasks import CONSTANTS, DirectPreference, LanguageModelling, Task
from lsm.train.program import shardings_of
from lsm.train.state import TrainState
from lsm.train.trained import Trained, load
from lsm.train.workdir import CHAT, DATA, INPUTS, TOKENIZER


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
    modelling of the better answers. Parameters are float32, and there is no optimiser state.

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
    folder, target = expanded(workdir, "--workdir"), expanded(out, "--out")
    if (target / CONFIG).exists() or (target / "checkpoints").exists():
        raise ConfigError(f"--out: {target} holds a run already; give a new folder.")
    run = load(workdir, experiment=experiment, step=step, devices=devices)
    if not isinstance(run.experiment.task.model, Lora):
        kind = type(run.experiment.task.model).__name__
        raise ConfigError(f"--workdir: {workdir} is a run of {kind}, which has no adapters.")
    plain = dataclasses.replace(run.experiment, task=_plain(run.experiment.task), start=None)
    with contextlib.closing(Checkpoints(target / "checkpoints")) as checkpoints:
        checkpoints.save(run.step, _state(run, plain), {"best_step": None})
    _write_records(folder, target, plain)
    return run.step


def _plain(task: Task) -> Task:
    """The task of the model without adapters, which holds no reference."""
    if isinstance(task, DirectPreference):
        return LanguageModelling(model=task.model.model, tokens=task.chosen, chunks=task.chunks)
    return dataclasses.replace(task, model=task.model.model)


def _state(run: Trained, plain: Experiment) -> TrainState:
    """The state of the plain model, laid out on the run's mesh by its own rules."""
    state, lora = dict(run.model_state), run.experiment.task.model
    constants = dict(state.pop(CONSTANTS))

    def merged(params: Any, constants: Any) -> dict[str, Any]:
        return {"params": lora.merged(params, constants)}

    shapes = jax.eval_shape(merged, run.params, constants)
    shardings = shardings_of(plain, run.mesh, shapes)
    given = jax.tree.map(lambda x: x.sharding, (run.params, constants))
    made = jit(merged, in_shardings=given, out_shardings=shardings, calls="one", mesh=run.mesh)
    params = made(run.params, constants)["params"]
    return TrainState(jnp.int32(run.step), params, state, {})


def _write_records(folder: pathlib.Path, target: pathlib.Path, plain: Experiment) -> None:
    # A run that was loaded by its experiment from Python has no files, or not all.
    for name in (DATA, INPUTS, TOKENIZER, CHAT):
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)
    origin = origin_of(folder)
    kept = Origin(data_dir=origin.data_dir, directory=origin.directory)
    atomic_write(target / ORIGIN, kept.to_json())
    record = schema.to_json(plain)
    atomic_write(target / CONFIG, json.dumps(record, indent=2).encode())
