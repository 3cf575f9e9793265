"""Structured pruning: whole filters, heads and hidden units go, and the model is smaller."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, Literal

import jax

from lsm.compress.units import Units, shrunk
from lsm.config import Experiment
from lsm.errors import ConfigError, listed
from lsm.params import flat, nested
from lsm.train.derived import made_of, new_folder, require_one_model, write_run
from lsm.train.trained import load


def shrink(
    workdir: os.PathLike | str,
    out: os.PathLike | str,
    *,
    filters: float = 1.0,
    heads: float = 1.0,
    hidden: float = 1.0,
    experiment: Experiment | None = None,
    step: int | Literal["best", "last"] = "best",
    devices: list[jax.Device] | None = None,
) -> int:
    """Writes a run's model with fewer units as a run; returns its step.

    Of every layer as many stay, those of the largest norm: L2, of all weights that lead into the
    unit or out of it (Li et al. 2017, arXiv:1608.08710, for filters, by L1 of what leads in; the
    norm of the whole group as in Fang et al. 2023, arXiv:2301.12900). What is left is not changed:
    units whose weights are 0 go without a trace, others cost accuracy that fine-tuning regains, by
    `Start(path=out)`.

    Args:
      workdir: folder of the run.
      out: new folder.
      filters: share that stays of the filters of CNN and Airbench, and of those within ResNet's
        blocks; rounded, one at least.
      heads: likewise of a Transformer's heads; queries that share a key go with it.
      hidden: likewise of the hidden units of a Transformer's and of other MLPs.
      experiment: what the run ran; None finds it, see `lsm.load`.
      step: which checkpoint, see `lsm.load`.
      devices: where it is computed; None is all of them.

    Raises:
      ConfigError: a share is not in (0, 1], nothing would go, the model has no such units, or there
        is a run in `out` already.
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    shares = {"filters": filters, "heads": heads, "hidden": hidden}
    for name, share in shares.items():
        if not (isinstance(share, int | float) and 0 < share <= 1):
            raise ConfigError(f"shrink.{name}: {share!r} given; allowed: a number in (0, 1].")
    target = new_folder(out)
    run = load(workdir, experiment=experiment, step=step, devices=devices)
    require_one_model(run, "shrink")
    task = run.experiment.task
    model, units = shrunk(task.model, shares)
    _check(shares, units, type(task.model).__name__)
    smaller = dataclasses.replace(
        run.experiment, task=dataclasses.replace(task, model=model), start=None
    )

    def left(params: Any, state: Any) -> dict[str, Any]:
        arrays = nested(cut(flat({"params": params, **state}), units))
        return {"params": arrays.pop("params"), "model_state": arrays}

    made = made_of(run, smaller, left, run.params, dict(run.model_state))
    write_run(workdir, target, smaller, run.step, made["params"], made["model_state"])
    return run.step


def _check(shares: Mapping[str, float], units: list[Units], model: str) -> None:
    kinds = {of.kind for of in units}
    for kind, share in shares.items():
        if share < 1 and kind not in kinds:
            raise ConfigError(
                f"shrink.{kind}: {share} given; {model} has none, but {listed(sorted(kinds))}."
            )
    if all(of.kept == of.count for of in units):
        told = listed(f"{kind}={share}" for kind, share in shares.items())
        raise ConfigError(f"shrink: {told} given, by which nothing goes; give one below 1.")


def cut(arrays: Mapping[str, jax.Array], units: list[Units]) -> dict[str, jax.Array]:
    """Returns the arrays of the smaller model, by path.

    Args:
      arrays: of the model, "params/..." and its other collections.
      units: those that are chosen from; all are weighed before any goes.
    """
    kept = [of.largest(arrays) for of in units]
    made = dict(arrays)
    for of, numbers in zip(units, kept, strict=True):
        for part in of.parts:
            one = functools.partial(part.cut, count=of.count)
            made[part.path] = of.each(one)(made[part.path], numbers)
    return made
