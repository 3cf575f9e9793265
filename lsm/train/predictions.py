"""What was trained, evaluated, and asked for predictions: by splits of its data, or by files."""

import collections
import contextlib
import csv
import dataclasses
import functools
import glob
import itertools
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
from lsm.data import CharText, Dataset, Files, doubts, images
from lsm.data.files import places
from lsm.data.files.columns import class_name
from lsm.data.files.parts import objects
from lsm.data.inputs import Inputs
from lsm.data.values import as_text, not_finite
from lsm.errors import CheckpointError, ConfigError, DataError
from lsm.files import expanded, nothing_at, plain_json, readable_disk_errors
from lsm.mesh import jit, replicated
from lsm.run import saved
from lsm.run.checkpoint import Checkpoints
from lsm.tasks import LanguageModelling, Task
from lsm.train.evaluation import evaluate_all, predict
from lsm.train.goodput import Clock
from lsm.train.state import TrainState
from lsm.train.trained import Trained, cut, load, source_of, stored
from lsm.train.trainer import Trainer, prepare_jax
from lsm.train.workdir import say_other_data

_log = logging.getLogger("lsm.train")
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
    if output.exists() and any(map(output.samefile, _files(given))):
        raise ConfigError(f"--output: {output} is one of the files that are read.")
    run = load(workdir)
    match [run.inputs_known.kind(name) for name in run.columns]:
        case ["pictures"]:
            pictures = _files(given, images.SUFFIXES)
            parts = _parts(({"file": str(file)}, str(file)) for file in pictures)
        case ["texts"]:
            parts = _parts(_texts(run, _files(given)))
        case _:
            parts = _examples(run, _files(given))
    return _write(output, _answers(run, parts))


def _answers(run: Trained, parts: Iterable[tuple[Sequence[dict], Any]]) -> Iterator[dict[str, Any]]:
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
            with _naming(run.inputs_known, run.column, told, values):
                found = run.predict(values)
        rows = _rows_of(run.experiment.task, [found], None)
        for where, row in zip(told, rows, strict=True):
            yield where | row
    for name, where in first.items() if processes.is_first() else ():
        line = (
            "predict: column %r is not finite in %d of %d rows, the first is %s; what is said of "
            "such a row may mean nothing."
        )
        _log.warning(line, name, count[name], all_rows, _place(where))


@contextlib.contextmanager
def _naming(inputs: Inputs, column: str, told: Sequence[dict], values: Any) -> Iterator[None]:
    """Says in a DataError which of the values, (N, ...) or N, is the first that cannot be read."""
    try:
        yield
    except DataError:
        for at, where in enumerate(told):
            try:
                inputs.read(column, values[at : at + 1])
            except DataError as error:
                raise DataError(f"{_place(where)}: {error}") from error
        raise


def _place(where: Mapping[str, Any]) -> str:
    return " ".join([where["file"], *(f"{k} {where[k]}" for k in ("line", "row") if k in where)])


def _parts(
    asked: Iterable[tuple[dict[str, Any], Any]],
) -> Iterator[tuple[Sequence[dict], Sequence[Any]]]:
    asked = iter(asked)
    while part := list(itertools.islice(asked, _AT_A_TIME)):
        told, values = zip(*part, strict=True)
        yield told, values


def _examples(
    run: Trained, files: Iterable[pathlib.Path]
) -> Iterator[tuple[Sequence[dict], dict[str, np.ndarray]]]:
    """Yields rows of tables and the like, with the input columns that the run's files have."""
    own, inputs = source_of(run.experiment, Files), run.inputs_known
    labels = own.labels if own else ()
    joined = {name: inputs.joined[name] for name in run.columns if name in inputs.joined}
    columns = stored(run.experiment, [name for name in run.columns if name not in joined])
    for file in files:
        # Of columns with classes in them the parts, which `inputs` puts together as in the run.
        parts = {name: Files(str(file), of).open("train") for name, of in joined.items()}
        alone = [Files(str(file), columns).open("train")] if columns else []
        for dataset in alone:
            _check_kinds(inputs, dataset, labels)
        length = len([*alone, *parts.values()][0])
        for told, rows in _rows_in(file, length):
            batch = alone[0].take(rows) if alone else {}
            for name, dataset in parts.items():
                taken = dataset.take(rows)
                beside = (taken[part].tolist() for part in joined[name])
                batch[name] = list(zip(*beside, strict=True))
            for name, values in batch.items():
                if name in labels and name not in joined:
                    values = objects([class_name(value) for value in values.tolist()])
                with _naming(inputs, name, told, values):
                    batch[name], _ = inputs.read(name, values)
            yield told, batch


def _rows_in(file: pathlib.Path, length: int) -> Iterator[tuple[list[dict[str, Any]], np.ndarray]]:
    for rows in np.array_split(np.arange(length), -(-length // _AT_A_TIME)):
        yield [{"file": str(file), "row": int(r) + 1} for r in rows], rows


def _check_kinds(inputs: Inputs, dataset: Dataset, labels: Sequence[str]) -> None:
    """Raises DataError for a column of texts that the run has no numbers of."""
    for name, one in dataset.spec.items():
        known = name in inputs.names
        if name in labels and not known:
            raise DataError(
                f"--input: column {name!r} is one of Files.labels, of which the run, of an earlier "
                "version, has kept no names; give columns by name to load(...).predict."
            )
        numbers = inputs.kind(name) == "numbers" and not known
        if numbers and one.dtype == object and (told := doubts.text(dataset, name)):
            raise DataError(f"--input: {told}; numbers are needed.")


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


def _texts(
    run: Trained, files: Iterable[pathlib.Path]
) -> Iterator[tuple[dict[str, Any], str | tuple[str, ...]]]:
    """Yields lines of texts; of tables and the like what the columns of the run's texts hold."""
    encoder, windows = run.inputs_known.encoder, source_of(run.experiment, CharText)
    own = (windows.column if windows else run.column,)
    names = encoder.columns[run.column] if encoder else own
    for file in files:
        if places.kind(file) in (None, ".txt"):
            yield from _lines(file, len(names) == 2)
            continue
        dataset = Files(str(file), stored(run.experiment, names)).open("train")
        for told, rows in _rows_in(file, len(dataset)):
            taken = dataset.take(rows)
            for where, *values in zip(told, *(taken[name] for name in names), strict=True):
                texts = tuple(as_text(x, functools.partial(_place, where)) for x in values)
                yield where, texts if len(names) == 2 else texts[0]


def _lines(
    file: pathlib.Path, pairs: bool
) -> Iterator[tuple[dict[str, Any], str | tuple[str, ...]]]:
    try:
        # Not `splitlines`, which cuts at U+2028 and the like too, which a text may hold; nor
        # `read_text`, to which a lone "\r" is the end of a line.
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"text {file} cannot be read: {error}.") from error
    for number, line in enumerate((line.removesuffix("\r") for line in lines), 1):
        if line:
            where = {"file": str(file), "line": number}
            yield where, tuple(line.split("\t")) if pairs else line


def _files(given: Sequence[str], suffixes: Sequence[str] = ("",)) -> list[pathlib.Path]:
    """Returns the files of paths and patterns, in order; of folders, those with such an ending."""
    found = []
    for path in (expanded(name, "--input") for name in given):
        if path.is_file():
            found.append(path)
            continue
        inside = path.rglob("*") if path.is_dir() else map(pathlib.Path, glob.iglob(str(path)))
        files = sorted(f for f in inside if f.is_file() and f.suffix.lower().endswith(suffixes))
        if not files and path.is_dir():
            raise DataError(f"--input: {path} holds nothing that could be read.")
        if not files:
            raise DataError(f"--input: {nothing_at(path)}")
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
