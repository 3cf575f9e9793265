"""A Transformer with fewer blocks: some of those that were trained, the others go."""

import dataclasses
import os
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.config import Experiment
from lsm.errors import ConfigError
from lsm.mesh import jit
from lsm.models.around import Around
from lsm.train.derived import new_folder, require_one_model, write_run
from lsm.train.program import shardings_of
from lsm.train.trained import load


def shorten(
    workdir: os.PathLike | str,
    out: os.PathLike | str,
    *,
    layers: tuple[int, ...],
    experiment: Experiment | None = None,
    step: int | Literal["best", "last"] = "best",
    devices: list[jax.Device] | None = None,
) -> int:
    """Writes a run's Transformer with some of its blocks alone as a run; returns its step.

    It is the beginning of a student (DistilBERT, arXiv:1910.01108, takes every other block): what
    it has lost is to be learnt again, see `lsm.tasks.Distillation`.

    Args:
      workdir: folder of the run.
      out: new folder.
      layers: numbers of the blocks that stay, from 0, rising.
      experiment: what the run ran; None finds it, see `lsm.load`.
      step: which checkpoint, see `lsm.load`.
      devices: where it is computed; None is all of them.

    Raises:
      ConfigError: the model is no such Transformer, it has no such blocks, or there is a run in
        `out` already.
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    target = new_folder(out)
    run = load(workdir, experiment=experiment, step=step, devices=devices)
    require_one_model(run, "shorten")
    task = run.experiment.task
    task = dataclasses.replace(task, model=_shorter(task.model, layers, run.params))
    shorter = dataclasses.replace(run.experiment, task=task, start=None)

    def kept(params: Any) -> dict[str, Any]:
        blocks = jax.tree.map(lambda x: x[jnp.array(layers)], params["blocks"])
        return {"params": {**params, "blocks": blocks}}

    shardings = shardings_of(shorter, run.mesh, jax.eval_shape(kept, run.params))
    given = jax.tree.map(lambda x: x.sharding, run.params)
    made = jit(kept, in_shardings=(given,), out_shardings=shardings, calls="one", mesh=run.mesh)
    params = made(run.params)["params"]
    write_run(workdir, target, shorter, run.step, params, run.model_state)
    return run.step


def _shorter(model: nn.Module, layers: tuple[int, ...], params: Any) -> nn.Module:
    """Returns a GPT, an encoder or a head on one with so many blocks."""
    kind = type(model).__name__
    if isinstance(model, Around):
        raise ConfigError(
            f"shorten: {kind} stands around {type(model.model).__name__}; a plain run of that is "
            "needed."
        )
    if hasattr(model, "encoder"):
        return dataclasses.replace(model, encoder=_shorter(model.encoder, layers, params))
    config = getattr(model, "transformer", None)
    if config is None or "blocks" not in params:
        raise ConfigError(f"shorten: {kind} is no stack of Transformer blocks, which could go.")
    rising = all(a < b for a, b in zip((-1, *layers), layers, strict=False))
    if not (rising and 0 < len(layers) < config.layers and layers[-1] < config.layers):
        raise ConfigError(
            f"shorten.layers: {layers} given; of the {config.layers} blocks some are needed, by "
            f"rising numbers of 0 to {config.layers - 1}."
        )
    if config.global_every:
        raise ConfigError(
            "shorten: which blocks see all goes by their numbers here (global_every), and these "
            "would change."
        )
    return dataclasses.replace(model, transformer=dataclasses.replace(config, layers=len(layers)))
