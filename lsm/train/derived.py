"""A run made of another: its model is changed, its task, data and records are the same."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from lsm.config import Experiment, schema
from lsm.config.origin import CONFIG, ORIGIN, Origin, origin_of
from lsm.errors import ConfigError
from lsm.files import atomic_write, expanded, readable_disk_errors
from lsm.mesh import jit
from lsm.run.checkpoint import Checkpoints
from lsm.tasks import CONSTANTS, ModelState, Params
from lsm.tasks.preference import REFERENCE
from lsm.train.program import shardings_of
from lsm.train.state import TrainState
from lsm.train.trained import Trained
from lsm.train.workdir import CHAT, DATA, INPUTS, TOKENIZER


def new_folder(out: os.PathLike | str) -> pathlib.Path:
    """Returns the folder of `--out`; raises ConfigError where it holds a run."""
    target = expanded(out, "--out")
    if (target / CONFIG).exists():
        raise ConfigError(f"--out: {target} holds a run already; give a new folder.")
    if (target / "checkpoints").exists():
        raise ConfigError(
            f"--out: {target} holds a part of a run, such as an interruption leaves; remove it, or "
            "give a new folder."
        )
    return target


def require_one_model(run: Trained, what: str) -> None:
    """Raises ConfigError where a run holds the model that it began as beside what it has become."""
    if REFERENCE in run.model_state.get(CONSTANTS, {}):
        kind = type(run.experiment.task).__name__
        raise ConfigError(
            f"{what}: a run of {kind} holds a reference, which would stay as large as it is; a "
            "run of language modelling that begins with it, by `start`, can be made smaller."
        )


def made_of(run: Trained, experiment: Experiment, function: Callable, *given: Any) -> Any:
    """Returns what is made of a run's arrays, laid out on its mesh by the new model's rules.

    Args:
      run: what the arrays are of.
      experiment: of the new model.
      function: pure; returns a tree whose paths are those of a training state, "params/...".
      given: its arguments: trees of arrays, on the run's mesh.
    """
    shardings = shardings_of(experiment, run.mesh, jax.eval_shape(function, *given))
    here = jax.tree.map(lambda x: x.sharding, given)
    options = {"in_shardings": here, "out_shardings": shardings, "calls": "one"}
    return jit(function, **options, mesh=run.mesh)(*given)


def write_run(
    source: os.PathLike | str,
    out: os.PathLike | str,
    experiment: Experiment,
    step: int,
    params: Params,
    model_state: ModelState,
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Writes a workdir as a run leaves it, with one checkpoint, without an optimiser's state.

    Args:
      source: folder of the run that it is made of, whose data, inputs and tokenizer it has.
      out: new folder.
      experiment: of the new model; what it starts from is not kept.
      step: updates that the source's parameters are made by.
      params: the new model's, on a mesh.
      model_state: its other collections.
      beside: other files, by name.

    Raises:
      ConfigError: there is a run in `out` already.
    """
    folder, target = expanded(source, "--workdir"), new_folder(out)
    state = TrainState(jnp.int32(step), params, model_state, {})
    with readable_disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Checkpoints(target / "checkpoints")) as checkpoints:
        checkpoints.save(step, state, {"best_step": None})
    # A run that was loaded by its experiment from Python has no files, or not all.
    for name in (DATA, INPUTS, TOKENIZER, CHAT):
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)
    for name, content in beside.items():
        atomic_write(target / name, content)
    origin = origin_of(folder)
    kept = Origin(data_dir=origin.data_dir, directory=origin.directory)
    atomic_write(target / ORIGIN, kept.to_json())
    record = schema.to_json(experiment)
    atomic_write(target / CONFIG, json.dumps(record, indent=2).encode())
