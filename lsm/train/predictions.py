"""What was trained, evaluated, and asked for predictions: by splits of its data, or by files."""

import contextlib
import csv
import glob
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np

from lsm import processes
from lsm.config import Experiment
from lsm.data import Files, images
from lsm.errors import CheckpointError, ConfigError, DataError
from lsm.files import expanded, plain_json, readable_disk_errors
from lsm.run.checkpoint import Checkpoints
from lsm.tasks import Task
from lsm.train.evaluation import evaluate_all, predict
from lsm.train.goodput import Clock
from lsm.train.state import TrainState
from lsm.train.trained import Trained, load
from lsm.train.trainer import Trainer, keep_compiled
from lsm.train.workdir import say_other_data

_AT_A_TIME = 256  # files or lines in a batch


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
    files = {}
    for split in trainer.evaluation:
        files[split] = expanded(workdir, "--workdir") / "predictions" / f"{split}.jsonl"
        dataset = trainer.evaluation[split].dataset
        names = dataset.characters or dataset.classes
        rows = _rows_of(experiment.task, predict(trainer, state, split), names)
        _write(files[split], ({"example": number, **row} for number, row in enumerate(rows)))
    return step, files


def predict_files(
    workdir: os.PathLike | str, given: str | Sequence[str], output: os.PathLike | str
) -> int:
    """Writes what a run's best model says of files: a row for each picture, text or example.

    Pictures and texts (a line of a file each) where the model reads such; else tables, arrays or
    records, with the columns that the run's own `lsm.data.Files` have, or that the model reads. A
    row has "file", of texts "line" and of others "row", counted from 1, and what `Trained.predict`
    gives.

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
    if output.exists() and any(map(output.samefile, _files(given))):
        raise ConfigError(f"--output: {output} is one of the files that are read.")
    run = load(workdir)
    match [run.inputs_known.kind(name) for name in run.columns]:
        case ["pictures"]:
            pictures = _files(given, images.SUFFIXES)
            parts = _parts(({"file": str(file)}, str(file)) for file in pictures)
        case ["texts"]:
            parts = _parts(_lines(_files(given)))
        case _:
            parts = _examples(run, _files(given))
    return _write(output, _answers(run, parts))


def _answers(run: Trained, parts: Iterable[tuple[Sequence[dict], Any]]) -> Iterator[dict[str, Any]]:
    """Yields what each example is told by, with the predictions of it."""
    for told, values in parts:
        try:
            found = run.predict(values)
        except DataError:
            if isinstance(values, Sequence):  # texts: which of them is it?
                for where, text in zip(told, values, strict=True):
                    _check_alone(run, where, text)
            raise
        rows = _rows_of(run.experiment.task, [found], None)
        for where, row in zip(told, rows, strict=True):
            yield where | row


def _check_alone(run: Trained, where: Mapping[str, Any], value: str) -> None:
    """Raises the DataError of one picture or text, with where it is."""
    try:
        run.inputs_known.read(run.column, value)
    except DataError as error:
        line = f" line {where['line']}" if "line" in where else ""
        raise DataError(f"{where['file']}{line}: {error}") from error


def _parts(
    asked: Iterable[tuple[dict[str, Any], str]],
) -> Iterator[tuple[Sequence[dict], Sequence[str]]]:
    asked = iter(asked)
    while part := list(itertools.islice(asked, _AT_A_TIME)):
        told, values = zip(*part, strict=True)
        yield told, values


def _examples(
    run: Trained, files: Iterable[pathlib.Path]
) -> Iterator[tuple[Sequence[dict], dict[str, np.ndarray]]]:
    """Yields rows of tables and the like, with the input columns that the run's files have."""
    source = run.experiment.data.source
    while not isinstance(source, Files) and hasattr(source, "source"):  # a split of them, say
        source = source.source
    own = source.columns if isinstance(source, Files) else None
    if isinstance(source, Files) and (numbered := set(source.labels) & set(run.columns)):
        raise DataError(
            f"--input: column {min(numbered)!r} is one of Files.labels, whose numbers are those of "
            "the run's own files; give columns by name to load(...).predict."
        )
    columns = {name: own[name] if isinstance(own, Mapping) else name for name in run.columns}
    for file in files:
        dataset = Files(str(file), columns).open("train")
        for rows in np.array_split(np.arange(len(dataset)), -(-len(dataset) // _AT_A_TIME)):
            batch = dataset.take(rows)
            told = [{"file": str(file), "row": int(row) + 1} for row in rows]
            yield told, {name: run.inputs_known.read(name, x)[0] for name, x in batch.items()}


def _rows_of(
    task: Task, predictions: Iterable[Mapping[str, np.ndarray]], names: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    """Yields a dict of plain values for each example."""
    for columns in predictions:
        columns = {**columns, **(task.named(columns, names) if names else {})}
        for row in zip(*columns.values(), strict=True):
            yield {name: x.tolist() for name, x in zip(columns, row, strict=True)}


def _lines(files: Iterable[pathlib.Path]) -> Iterator[tuple[dict[str, Any], str]]:
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"text {file} cannot be read: {error}.") from error
        for number, line in enumerate(lines, 1):
            if line:
                yield {"file": str(file), "line": number}, line


def _files(given: Sequence[str], suffixes: Sequence[str] = ("",)) -> list[pathlib.Path]:
    """Returns the files of paths and patterns, in order; of folders, those with such an ending."""
    found = []
    for path in (expanded(name, "--input") for name in given):
        if path.is_file():
            found.append(path)
            continue
        inside = path.rglob("*") if path.is_dir() else map(pathlib.Path, glob.iglob(str(path)))
        files = sorted(f for f in inside if f.is_file() and f.suffix.lower().endswith(suffixes))
        if not files:
            raise DataError(f"--input: there is no {path}, or nothing in it that could be read.")
        found += files
    return found


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
    writer = csv.writer(file)

    def line(row: dict[str, Any]) -> None:
        if not file.tell():
            writer.writerow(row)
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
    keep_compiled()
    trainer = Trainer.of(experiment, data_dir)
    say_other_data(expanded(workdir, "--workdir"), trainer)
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
