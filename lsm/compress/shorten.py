"""A Transformer or a ResNet with fewer blocks: some of those that were trained, the others go."""

import dataclasses
import itertools
import os
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.config import Experiment
from lsm.errors import ConfigError, listed
from lsm.models import ResNet
from lsm.models.around import Around
from lsm.train.derived import made_of, new_folder, require_one_model, write_run
from lsm.train.trained import load

Collection = dict[str, Any]


def shorten(
    workdir: os.PathLike | str,
    out: os.PathLike | str,
    *,
    layers: tuple[int, ...],
    experiment: Experiment | None = None,
    step: int | Literal["best", "last"] = "best",
    devices: list[jax.Device] | None = None,
) -> int:
    """Writes a run with some of its Transformer's or ResNet's blocks alone; returns its step.

    It is the beginning of a student (DistilBERT, arXiv:1910.01108, takes every other block): what
    it has lost is to be learnt again, see `lsm.tasks.Distillation`. A block adds to what goes
    through it, so that the others still know what they read (Veit et al. 2016, arXiv:1605.06431).

    Args:
      workdir: folder of the run.
      out: new folder.
      layers: numbers of the blocks that stay, from 0, rising; a ResNet's are counted through all
        stages, and the first of each, which gives it its shape, stays.
      experiment: what the run ran; None finds it, see `lsm.load`.
      step: which checkpoint, see `lsm.load`.
      devices: where it is computed; None is all of them.

    Raises:
      ConfigError: the model is neither of them, it has no such blocks, or there is a run in `out`
        already.
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    target = new_folder(out)
    run = load(workdir, experiment=experiment, step=step, devices=devices)
    require_one_model(run, "shorten")
    task = run.experiment.task
    model, left = _shorter(task.model, layers, run.params)
    shorter = dataclasses.replace(
        run.experiment, task=dataclasses.replace(task, model=model), start=None
    )

    def kept(params: Any, state: Any) -> dict[str, Any]:
        return {"params": left(params), "model_state": {name: left(x) for name, x in state.items()}}

    made = made_of(run, shorter, kept, run.params, dict(run.model_state))
    write_run(workdir, target, shorter, run.step, made["params"], made["model_state"])
    return run.step


def _shorter(
    model: nn.Module, layers: tuple[int, ...], params: Any
) -> tuple[nn.Module, Callable[[Collection], Collection]]:
    """Returns the shorter model, and what is left of a collection of the whole one's."""
    kind = type(model).__name__
    if isinstance(model, Around):
        raise ConfigError(
            f"shorten: {kind} stands around {type(model.model).__name__}; a plain run of that is "
            "needed."
        )
    if isinstance(model, ResNet):
        return _resnet(model, layers)
    if hasattr(model, "encoder"):
        encoder, left = _shorter(model.encoder, layers, params)
        return dataclasses.replace(model, encoder=encoder), left
    if getattr(model, "transformer", None) is None or "blocks" not in params:
        raise ConfigError(
            f"shorten: {kind} is neither a ResNet nor a stack of Transformer blocks, which could "
            "go."
        )
    return _transformer(model, layers)


def _transformer(
    model: nn.Module, layers: tuple[int, ...]
) -> tuple[nn.Module, Callable[[Collection], Collection]]:
    config = model.transformer
    _check(layers, config.layers)
    if config.global_every:
        raise ConfigError(
            "shorten: which blocks see all goes by their numbers here (global_every), and these "
            "would change."
        )

    def left(collection: Collection) -> Collection:
        blocks = {"blocks": collection["blocks"]} if "blocks" in collection else {}
        return {**collection, **jax.tree.map(lambda x: x[jnp.array(layers)], blocks)}

    config = dataclasses.replace(config, layers=len(layers))
    return dataclasses.replace(model, transformer=config), left


def _resnet(
    model: ResNet, layers: tuple[int, ...]
) -> tuple[nn.Module, Callable[[Collection], Collection]]:
    ends = list(itertools.accumulate(model.depths))
    _check(layers, ends[-1])
    firsts = [0, *ends[:-1]]
    if not set(firsts) <= set(layers):
        raise ConfigError(
            f"shorten.layers: {layers} given; the first block of each stage stays, here "
            f"{listed(map(str, firsts))}."
        )
    stages = [[n for n in layers if a <= n < b] for a, b in zip(firsts, ends, strict=True)]
    names = {
        f"stage_{stage}_block_{old - kept[0]}": f"stage_{stage}_block_{new}"
        for stage, kept in enumerate(stages, 1)
        for new, old in enumerate(kept)
    }

    def left(collection: Collection) -> Collection:
        beside = {name: x for name, x in collection.items() if not name.startswith("stage_")}
        return beside | {new: collection[old] for old, new in names.items() if old in collection}

    return dataclasses.replace(model, depths=tuple(map(len, stages))), left


def _check(layers: tuple[int, ...], count: int) -> None:
    rising = all(a < b for a, b in itertools.pairwise((-1, *layers)))
    if not (rising and 0 < len(layers) < count and layers[-1] < count):
        raise ConfigError(
            f"shorten.layers: {layers} given; of the {count} blocks some are needed, by rising "
            f"numbers of 0 to {count - 1}."
        )
