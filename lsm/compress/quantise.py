"""A run becomes one of the same model in whole numbers: post-training quantisation."""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lsm.compress.calibrate import largest_inputs
from lsm.config import Experiment
from lsm.config.origin import origin_of
from lsm.data import Columns, TrainBatches
from lsm.data.transforms import changed
from lsm.errors import CheckpointError, ConfigError
from lsm.files import expanded
from lsm.mesh import batch_ways
from lsm.models import Lora, QuantisationAware, Quantised
from lsm.models.marks import layers
from lsm.models.quantised import Bits
from lsm.models.whole_layers import Activations
from lsm.optim import SGD
from lsm.params import flat
from lsm.tasks import CONSTANTS
from lsm.train.derived import made_of, new_folder, require_one_model, write_run
from lsm.train.program import make_predict
from lsm.train.trained import Trained, load

_log = logging.getLogger("lsm.compress")

QUANTISED = "quantised.json"
"""File of the new workdir: what it was made of, and how."""


def quantise(
    workdir: os.PathLike | str,
    out: os.PathLike | str,
    *,
    weights: Bits | None = None,
    activations: Activations | None = None,
    kept: str | None = None,
    calibration: int = 8,
    experiment: Experiment | None = None,
    step: int | Literal["best", "last"] = "best",
    data_dir: os.PathLike | str | None = None,
    devices: list[jax.Device] | None = None,
) -> int:
    """Writes a run whose model is `lsm.models.Quantised`; returns the step of its source.

    The task and the data are the source's. A run of `lsm.models.QuantisationAware` becomes what it
    was trained for, up to rounding. Of the optimiser nothing is kept: what is still float could be
    trained on, by a config of its own.

    Args:
      workdir: folder of the run.
      out: new folder.
      weights: "int8" or "int4"; None is what the run was trained for, else "int8".
      activations: see `Quantised`; None is what the run was trained for, else floats.
      kept: pattern of kernels and embeddings that stay float; None likewise, else none.
      calibration: batches of the training data that "calibrated" activations are measured on, drawn
        as in training with the run's seed, and changed as for evaluation.
      experiment: what the run ran; None finds it, see `lsm.load`.
      step: which checkpoint, see `lsm.load`.
      data_dir: where its data is; None is where the run found it.
      devices: where it is computed; None is all of them.

    Raises:
      ConfigError: the model is quantised already, or has adapters, or nothing to quantise; there is
        a run in `out` already.
      CheckpointError: there is no such checkpoint, or it is damaged, or not finite.
      DataError: activations are calibrated, and the data is not there.
      MeshError: activations are calibrated, on a mesh with stages.
    """
    if calibration < 1:
        raise ConfigError(f"calibration: {calibration} given; allowed: 1 batch or more.")
    target = new_folder(out)
    run = load(workdir, experiment=experiment, step=step, devices=devices)
    require_one_model(run, "quantise")
    model = _quantised(run, os.fspath(workdir), weights, activations, kept)
    run = _plain(run)
    _check_finite(run)
    axes = _layers(run, model)
    largest = {}
    if model.activations == "calibrated":
        data_dir = data_dir or origin_of(expanded(workdir, "--workdir")).data_dir
        largest = largest_inputs(run, _batches(run, calibration, data_dir), axes)
    made = dataclasses.replace(
        run.experiment,
        task=dataclasses.replace(run.experiment.task, model=model),
        optimizer=SGD(learning_rate=1e-3),
        start=None,
    )
    params, state = _made(run, made, axes, largest)
    record = json.dumps(_record(run, workdir, model, calibration), indent=2).encode()
    write_run(workdir, target, made, run.step, params, state, {QUANTISED: record})
    sizes = [sum(x.nbytes for x in jax.tree.leaves(of)) for of in (run.params, (params, state))]
    _log.info("quantise: %d arrays; %.1f MB become %.1f MB", len(axes), *(n / 1e6 for n in sizes))
    return run.step


def _quantised(
    run: Trained,
    workdir: str,
    weights: Bits | None,
    activations: Activations | None,
    kept: str | None,
) -> Quantised:
    """Returns the new model; raises ConfigError where there cannot be one."""
    model, told = run.experiment.task.model, f"--workdir: {workdir} is a run of"
    if isinstance(model, Quantised):
        raise ConfigError(f"{told} a model that is quantised already; give the run it was made of.")
    if isinstance(model, Lora):
        raise ConfigError(f"{told} adapters; merge them first (python -m lsm.adapt merge).")
    if not isinstance(model, QuantisationAware):
        return Quantised(model, weights=weights or "int8", activations=activations, kept=kept)
    return Quantised(
        model.model,
        weights=weights or model.weights,
        activations=activations or model.activations,
        kept=kept or model.kept,
    )


def _plain(run: Trained) -> Trained:
    """The run with the model as it is without rounding; parameters have the same paths."""
    task = run.experiment.task
    if not isinstance(task.model, QuantisationAware):
        return run
    task = dataclasses.replace(task, model=task.model.model)
    return dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, task=task))


def _check_finite(run: Trained) -> None:
    for path, x in flat(run.params).items():
        if not bool(jnp.isfinite(x).all()):
            raise CheckpointError(f"quantise: {path!r} of step {run.step} is not finite.")


def _layers(run: Trained, model: Quantised) -> dict[str, int]:
    """Returns the arrays to round, by path, and the dimensions that they are summed over."""
    columns = run.inputs_known.columns
    batch = {name: np.zeros((1, *x.shape), x.dtype) for name, x in columns.items()}
    predict = make_predict(run.experiment.task, run.experiment.train.seed)

    def call(params: Any) -> Any:
        return predict(params, run.model_state, batch, np.int32(0), np.int32(run.step))

    return model.chosen(layers(call, run.params), run.params)


def _batches(run: Trained, count: int, data_dir: Any) -> Iterator[Columns]:
    data, train = run.experiment.data, run.experiment.train
    dataset = data.source.open(data.train, data_dir)
    batches = TrainBatches(dataset, _rows(run), train.seed, sampling=data.sampling)
    for number in range(count):
        yield changed(batches.batch_at(number), data.evaluate)


def _rows(run: Trained) -> int:
    """Rows of a batch: as in training, and as many on every device."""
    size = run.experiment.train.batch_size
    return size + -size % batch_ways(run.mesh)


def _record(
    run: Trained, workdir: os.PathLike | str, model: Quantised, calibration: int
) -> dict[str, Any]:
    """Returns what `QUANTISED` says."""
    record: dict[str, Any] = {"source": os.fspath(workdir), "step": run.step}
    record |= {name: getattr(model, name) for name in ("weights", "activations", "kept")}
    if model.activations == "calibrated":
        data, train = run.experiment.data, run.experiment.train
        batches = {"split": data.train, "batches": calibration}
        record["calibration"] = batches | {"batch_size": _rows(run), "seed": train.seed}
    return record


def _made(run: Trained, made: Experiment, axes: Any, largest: Any) -> tuple[Any, Any]:
    """Parameters and model state of the new model, laid out on the run's mesh by its rules."""
    model, state = made.task.model, dict(run.model_state)

    def held(params: Any) -> dict[str, Any]:
        params, whole = model.held(params, axes, largest)
        return {"params": params, "model_state": {CONSTANTS: {"quantised": whole}}}

    new = made_of(run, made, held, run.params)
    constants = {**state.get(CONSTANTS, {}), **new["model_state"][CONSTANTS]}
    return new["params"], state | {CONSTANTS: constants}
