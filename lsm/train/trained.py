"""What has been trained, in use: evaluated, asked for predictions, loaded into Python."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import flax
import jax
import numpy as np

from lsm import processes
from lsm.config import Experiment, schema
from lsm.data.dataset import narrowed
from lsm.errors import CheckpointError, ConfigError, DataError
from lsm.files import expanded, parsed_json, plain_json, readable_disk_errors
from lsm.mesh import Mesh, batch_sharding, batch_ways, jit, local_rows, make_mesh, place, replicated
from lsm.params import flat, nested
from lsm.run.checkpoint import Checkpoints
from lsm.run.weights import open_run
from lsm.tasks import Batch, ModelState, Params
from lsm.train.evaluation import evaluate_all, predict
from lsm.train.goodput import Clock
from lsm.train.program import make_predict, shardings_of
from lsm.train.state import TrainState
from lsm.train.trainer import Trainer, keep_compiled


def evaluate_run(
    experiment: Experiment, workdir: os.PathLike | str, *, data_dir: os.PathLike | str | None = None
) -> tuple[int, dict[str, dict[str, float]]]:
    """Evaluates the best checkpoint of a run, or its last where none was chosen as best.

    Returns:
      The checkpoint's step, and its figures by split ("validation", "test"). Writes nothing.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged or of another model.
    """
    trainer, state, step = _restored(experiment, workdir, data_dir)
    return step, evaluate_all(trainer, state, Clock())


def predict_run(
    experiment: Experiment, workdir: os.PathLike | str, *, data_dir: os.PathLike | str | None = None
) -> tuple[int, dict[str, pathlib.Path]]:
    """Writes the predictions of the best checkpoint of a run, or of its last, split by split.

    Each file is `workdir/predictions/SPLIT.jsonl`, one JSON object an example, in the order of the
    split: "example", its number, and what `Task.predict` gives. It appears when it is whole.

    Returns:
      The checkpoint's step, and the files by split.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged or of another model.
      TrainingError: the disk is full or the workdir cannot be written.
    """
    trainer, state, step = _restored(experiment, workdir, data_dir)
    files = {}
    for split in trainer.evaluation:
        files[split] = expanded(workdir, "--workdir") / "predictions" / f"{split}.jsonl"
        predictions = predict(trainer, state, split)
        if processes.is_first():
            _write_rows(files[split], predictions)
        else:
            for _ in predictions:  # each process has its part in computing them
                pass
    return step, files


def _write_rows(path: pathlib.Path, predictions: Iterator[Mapping[str, np.ndarray]]) -> None:
    part, number = path.with_name(path.name + ".part"), 0
    with readable_disk_errors(path):
        path.parent.mkdir(exist_ok=True)
        with part.open("w") as file:
            for columns in predictions:
                for row in zip(*columns.values(), strict=True):
                    named = {k: x.tolist() for k, x in zip(columns, row, strict=True)}
                    file.write(json.dumps(plain_json({"example": number, **named})) + "\n")
                    number += 1
        part.replace(path)


def _restored(
    experiment: Experiment, workdir: os.PathLike | str, data_dir: os.PathLike | str | None
) -> tuple[Trainer, TrainState, int]:
    """Opens the data of a run, and restores the checkpoint that speaks for it."""
    directory = expanded(workdir, "--workdir") / "checkpoints"
    if not directory.is_dir():
        raise CheckpointError(f"--workdir: no checkpoints in {workdir}; train there first.")
    keep_compiled()
    trainer = Trainer.of(experiment, data_dir)
    for split in trainer.evaluation:
        trainer.check_examples(split)
    while True:
        with contextlib.closing(
            Checkpoints(directory, checksums=trainer.program.checksums, read_only=True)
        ) as checkpoints:
            step = checkpoints.latest()
            if step is None:
                raise CheckpointError(f"--workdir: no checkpoints in {workdir}; train there first.")
            try:
                step = checkpoints.chosen()
                return trainer, checkpoints.restore(trainer.program.abstract_state, step), step
            except CheckpointError:
                if (directory / str(step)).is_dir():
                    raise
                continue  # a run in progress has just replaced it with a newer one


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained model in memory: what `load` returns.

    Attributes:
      experiment: what was trained.
      step: updates that made the parameters.
      params: parameters, averaged ones where the run kept an average; on `mesh`.
      model_state: the other collections, averaged likewise.
      mesh: the devices.
    """

    experiment: Experiment
    step: int
    params: Params
    model_state: ModelState
    mesh: jax.sharding.Mesh

    def predict(self, batch: Batch) -> dict[str, np.ndarray]:
        """Returns what `Task.predict` says of a batch: named arrays (B, ...).

        Args:
          batch: the columns that the task's inputs need, (B, ...); any B. Each new B compiles once.
            Random streams are those of the first batch of an evaluation.
            64-bit numbers are taken as 32-bit ones. Several processes all give the same batch.

        Raises:
          CheckpointError: the parameters are not those of this model on such inputs.
          DataError: a column is missing, or columns are not of one length.
        """
        batch = {name: narrowed(np.asarray(x), name) for name, x in batch.items()}
        rows, sharding = _rows(batch), batch_sharding(self.mesh)
        missing = -rows % batch_ways(self.mesh)  # rows to fill up, so that all devices have as many
        mine = np.minimum(local_rows(sharding, rows + missing), rows - 1)
        placed = place({name: x[mine] for name, x in batch.items()}, sharding)
        number = np.int32(0)
        try:
            found = self._predict(
                self.params, self.model_state, placed, number, np.int32(self.step)
            )
        except flax.errors.FlaxError as error:  # a parameter is missing, or has another shape
            reason = str(error).split(" (http")[0]
            raise CheckpointError(
                f"step {self.step} does not fit {type(self.experiment.task.model).__name__} on "
                f"such inputs: {reason}"
            ) from error
        return {name: x[:rows] for name, x in jax.device_get(found).items()}

    @functools.cached_property
    def _predict(self) -> Callable[..., dict[str, jax.Array]]:
        rows, whole = batch_sharding(self.mesh), replicated(self.mesh)
        held = jax.tree.map(lambda x: x.sharding, (self.params, self.model_state))
        return jit(
            make_predict(self.experiment.task, self.experiment.train.seed),
            in_shardings=(*held, rows, whole, whole),
            out_shardings=whole,
            mesh=self.mesh,
        )


def _rows(batch: Mapping[str, np.ndarray]) -> int:
    lengths = {name: len(x) if x.ndim else 0 for name, x in batch.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise DataError(
            f"predict: columns of lengths {lengths} given; one length above 0 is needed."
        )
    return next(iter(lengths.values()))


def load(
    workdir: os.PathLike | str,
    *,
    experiment: Experiment | None = None,
    step: int | Literal["best", "last"] = "best",
    mesh: Mesh | None = None,
    devices: list[jax.Device] | None = None,
) -> Trained:
    """Loads what a run has trained; neither its data nor its optimiser state is read.

    Args:
      workdir: folder of the run.
      experiment: what it ran; None rebuilds it from `config.json`, which knows no functions that
        have no name and no arrays.
      step: the "best" checkpoint (the last where no evaluation chose one), the "last", or a step.
      mesh: how to lay the parameters out; None is the experiment's mesh, or, on one device, that.
      devices: where; None is all of them.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
      ConfigError: the experiment cannot be rebuilt.
      MeshError: the mesh does not fit the devices.
    """
    keep_compiled()
    experiment = _experiment_of(expanded(workdir, "--workdir"), experiment)
    devices = jax.devices() if devices is None else devices
    mesh = mesh or (experiment.mesh if len(devices) > 1 else Mesh(rules=experiment.mesh.rules))
    experiment = dataclasses.replace(experiment, mesh=dataclasses.replace(mesh, offload=False))
    laid_out = make_mesh(experiment.mesh, devices)
    with open_run(workdir, step) as (weights, found):
        # Rules say "params/..." and "model_state/..." as in a training state.
        tree = nested(weights.spec)
        params = {"params": tree.pop("params", {})}
        shardings = shardings_of(experiment, laid_out, params | {"model_state": tree})
        shardings = flat({"params": shardings["params"], **shardings["model_state"]})
        arrays = nested({**weights.read(shardings), **{path: {} for path in weights.empties}})
    return Trained(experiment, found, arrays.pop("params", {}), arrays, laid_out)


def _experiment_of(workdir: pathlib.Path, given: Experiment | None) -> Experiment:
    """Returns the experiment of a run; one that is given must have the task of its config."""
    path = workdir / "config.json"
    if given is not None and not path.exists():
        return given
    try:
        saved = parsed_json(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}).") from error
    if given is None:
        return schema.from_json(saved, Experiment, f"Give load({str(workdir)!r}, experiment=...).")
    changes = schema.differences({"task": saved.get("task")}, {"task": schema.to_json(given.task)})
    if changes:
        raise ConfigError(f"{workdir} holds a run of another task: {'; '.join(changes)}.")
    return given
