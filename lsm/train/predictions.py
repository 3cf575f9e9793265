"""What was trained, evaluated, and asked for predictions: by splits of its data, or by files."""

import collections
import contextlib
import csv
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from lsm import processes
from lsm.config import Experiment
from lsm.data import Dataset
from lsm.data.inputs import Inputs
from lsm.data.values import not_finite
from lsm.errors import CheckpointError, ConfigError, DataError, listed
from lsm.files import expanded, plain_json, readable_disk_errors
from lsm.mesh import jit, replicated
from lsm.run import saved
from lsm.run.checkpoint import Checkpoints
from lsm.tasks import LanguageModelling, Task
from lsm.train.evaluation import evaluate_all, predict
from lsm.train.given import Told, examples, files_of, naming, place
from lsm.train.goodput import Clock
from lsm.train.state import TrainState
from lsm.train.trained import Trained, cut, load
from lsm.train.trainer import Trainer, prepare_jax
from lsm.train.workdir import say_other_data

_log = logging.getLogger("lsm.train")


def evaluate_run(
    experiment: Experiment, workdir: os.PathLike | str, *, data_dir: os.PathLike | str | None = None
) -> tuple[int, dict[str, dict[str, float]]]:
    """Evaluates the best checkpoint of a run, or its last where none was chosen as best.

    Returns:
      The checkpoint's step, and its figures by split ("validation", "test"). Writes nothing but
      the pictures of the metrics.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged or of another model.
    """
    trainer, state, step = _restored(experiment, workdir, data_dir)
    return step, evaluate_all(trainer, state, Clock(), expanded(workdir, "--workdir"))


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
    task, files = trainer.experiment.task, {}
    for split in trainer.evaluation:
        files[split] = expanded(workdir, "--workdir") / "predictions" / f"{split}.jsonl"
        dataset = trainer.evaluation[split].dataset
        names = Inputs.of(dataset).called(task)
        found = _of_tokens(task, dataset, predict(trainer, state, split))
        rows = _rows_of(task, found, names)
        _write(files[split], ({"example": number, **row} for number, row in enumerate(rows)))
    return step, files


def predict_files(
    workdir: os.PathLike | str, given: str | Sequence[str], output: os.PathLike | str
) -> int:
    """Writes what a run's best model says of files: a row for each picture, text or example.

    Pictures and texts (a line of a file each, of pairs with a tab between the two) where the model
    reads such; else tables, arrays or records, with the columns that the run's own `lsm.data.Files`
    have, or that the model reads. Of those, texts are the columns that the run's own are made of.
    A row has "file", of lines "line" and of others "row", counted from 1, and what
    `Trained.predict` gives. Columns of `Files.labels` are numbered as in the run.
    A row that is not finite is predicted, and warned of: it may be one of many, and a model may
    have learnt to take NaN.

    Args:
      workdir: folder of the run; its data is not read.
      given: a file, a folder or a pattern such as "new/*.png", or several.
      output: a file that ends in ".csv" or ".jsonl"; it appears when it is whole.

    Returns:
      The number of rows.

    Raises:
      DataError: a file is not there, cannot be read, or does not have such columns.
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    output, given = expanded(output, "--output"), [given] if isinstance(given, str) else given
    if output.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"--output: {output.name!r} given; it has to end in .csv or .jsonl.")
    if output.exists() and any(map(output.samefile, files_of(given))):
        raise ConfigError(f"--output: {output} is one of the files that are read.")
    run = load(workdir)
    return _write(output, _answers(run, examples(run, given)))


def _answers(run: Trained, parts: Iterable[tuple[Sequence[Told], Any]]) -> Iterator[dict[str, Any]]:
    """Yields what each example is told by, with the predictions of it."""
    first, count, all_rows = {}, collections.Counter(), 0
    for told, values in parts:
        all_rows += len(told)
        if isinstance(values, Mapping):
            found = run.answered(values)
            for name, rows in not_finite(values).items():
                first.setdefault(name, told[rows[0]])
                count[name] += len(rows)
        else:
            with naming(run.inputs_known, run.column, told, values):
                found = run.predict(values)
        rows = _rows_of(run.experiment.task, [found], None)
        for where, row in zip(told, rows, strict=True):
            yield where | row
    for name, where in first.items() if processes.is_first() else ():
        line = (
            "predict: column %r is not finite in %d of %d rows, the first is %s; what is said of "
            "such a row may mean nothing."
        )
        _log.warning(line, name, count[name], all_rows, place(where))


def _rows_of(
    task: Task, predictions: Iterable[Mapping[str, np.ndarray]], names: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    """Yields a dict of plain values for each example."""
    for columns in predictions:
        columns = {**columns, **(task.named(columns, names) if names else {})}
        for row in zip(*columns.values(), strict=True):
            # Texts are plain already.
            yield {
                name: x.tolist() if hasattr(x, "tolist") else x
                for name, x in zip(columns, row, strict=True)
            }


def _of_tokens(
    task: Task, dataset: Dataset, predictions: Iterable[dict[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
    """Yields predictions without what a language model says of the padding of texts."""
    padded, start = isinstance(task, LanguageModelling) and dataset.encoder is not None, 0
    for columns in predictions:
        rows = np.arange(start, start + len(next(iter(columns.values()))))
        start += len(rows)
        lengths = dataset.lengths(rows) - 1  # the first of a text is not predicted
        yield {name: cut(x, lengths) for name, x in columns.items()} if padded else columns


def _write(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes rows as CSV or JSONL and returns how many; every process makes them, one writes."""
    if not processes.is_first():
        return sum(1 for _ in rows)
    part, count = path.with_name(path.name + ".part"), 0
    with readable_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", newline="") as file:
                line = _as_csv(file) if path.suffix == ".csv" else _as_json(file)
                for row in rows:
                    line(plain_json(row))
                    count += 1
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return count


def _as_json(file: TextIO) -> Callable[[dict[str, Any]], None]:
    return lambda row: file.write(json.dumps(row) + "\n")


def _as_csv(file: TextIO) -> Callable[[dict[str, Any]], None]:
    """Returns what writes a row, lists as JSON; the names come before the first."""
    writer, names = csv.writer(file), []

    def line(row: dict[str, Any]) -> None:
        if not names:
            names.extend(row)
            writer.writerow(names)
        elif names != [*row]:  # as of lines of a text and rows of a table
            raise DataError(
                f"--output: a CSV has one header, {listed(names)}, and {row['file']} gives "
                f"{listed(row)}; give them apart, or an output that ends in .jsonl."
            )
        writer.writerow([json.dumps(x) if isinstance(x, list) else x for x in row.values()])

    return line


def _restored(
    experiment: Experiment, workdir: os.PathLike | str, data_dir: os.PathLike | str | None
) -> tuple[Trainer, TrainState, int]:
    """Opens the data of a run, and restores the checkpoint that speaks for it.

    Data that has changed since is used, and said.
    """
    directory = expanded(workdir, "--workdir") / "checkpoints"
    if not directory.is_dir():
        raise CheckpointError(f"--workdir: no checkpoints in {workdir}; train there first.")
    prepare_jax()
    plain = dataclasses.replace(experiment, task=experiment.task.plain)
    trainer = Trainer.of(plain, data_dir)
    say_other_data(expanded(workdir, "--workdir"), trainer)
    for split in trainer.evaluation:
        trainer.check_examples(split)
    if plain.task is not experiment.task:  # a student, whose teacher is not needed
        run = load(workdir, experiment=experiment)
        return trainer, TrainState(jnp.int32(run.step), run.params, run.model_state, {}), run.step
    while True:
        with contextlib.closing(
            Checkpoints(directory, checksums=_checksums(trainer), read_only=True)
        ) as checkpoints:
            step = checkpoints.latest()
            if step is None:
                raise CheckpointError(f"--workdir: no checkpoints in {workdir}; train there first.")
            try:
                step = checkpoints.chosen()
                return (
                    trainer,
                    checkpoints.restore(_abstract(trainer, checkpoints, step), step),
                    step,
                )
            except CheckpointError:
                if (directory / str(step)).is_dir():
                    raise
                continue  # a run in progress has just replaced it with a newer one


def _abstract(trainer: Trainer, checkpoints: Checkpoints, step: int) -> TrainState:
    """Returns the state that is saved; of a run made of another there is no optimiser's."""
    state = trainer.program.abstract_state
    derived = "opt_state" in checkpoints.empties(step)
    return dataclasses.replace(state, opt_state={}) if derived else state


def _checksums(trainer: Trainer) -> Callable[[TrainState], Any]:
    """Returns `Program.checksums`, for states without an optimiser's too."""
    program = trainer.program

    def checksums(state: TrainState) -> Any:
        if jax.tree.structure(state) == jax.tree.structure(program.abstract_state):
            return program.checksums(state)
        held, whole = jax.tree.map(lambda x: x.sharding, state), replicated(program.mesh)
        return jit(saved.checksums, in_shardings=(held,), out_shardings=whole)(state)

    return checksums
