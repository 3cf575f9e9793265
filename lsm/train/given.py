"""What a run's model is asked to predict: the examples of files, as `--input` names them."""

import contextlib
import functools
import glob
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lsm.config import Experiment
from lsm.data import CharText, Dataset, Files, doubts, images
from lsm.data.files import places
from lsm.data.files.columns import class_name
from lsm.data.files.parts import objects
from lsm.data.inputs import Inputs
from lsm.data.values import as_text
from lsm.errors import DataError
from lsm.files import expanded, nothing_at
from lsm.train.trained import Trained

_AT_A_TIME = 256  # files or lines in a batch

Told = dict[str, Any]
"""What an example is named by: "file", and "line" or "row", counted from 1."""


def examples(run: Trained, given: Sequence[str]) -> Iterator[tuple[Sequence[Told], Any]]:
    """Yields what some examples are named by, and values (N,), or columns (N, ...) by name.

    Raises:
      DataError: a file is not there, cannot be read, or does not have such columns.
    """
    match [run.inputs_known.kind(name) for name in run.columns]:
        case ["pictures"]:
            pictures = files_of(given, images.SUFFIXES)
            yield from _parts(({"file": str(file)}, str(file)) for file in pictures)
        case ["texts"]:
            yield from _parts(_texts(run, files_of(given)))
        case _:
            yield from _examples(run, files_of(given))


def files_of(given: Sequence[str], suffixes: Sequence[str] = ("",)) -> list[pathlib.Path]:
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


@contextlib.contextmanager
def naming(inputs: Inputs, column: str, told: Sequence[Told], values: Any) -> Iterator[None]:
    """Says in a DataError which of the values, (N, ...) or N, is the first that cannot be read."""
    try:
        yield
    except DataError:
        for at, where in enumerate(told):
            try:
                inputs.read(column, values[at : at + 1])
            except DataError as error:
                raise DataError(f"{place(where)}: {error}") from error
        raise


def place(where: Told) -> str:
    """Returns what an error names an example by."""
    return " ".join([where["file"], *(f"{k} {where[k]}" for k in ("line", "row") if k in where)])


def _parts(
    asked: Iterable[tuple[Told, Any]],
) -> Iterator[tuple[Sequence[Told], Sequence[Any]]]:
    asked = iter(asked)
    while part := list(itertools.islice(asked, _AT_A_TIME)):
        told, values = zip(*part, strict=True)
        yield told, values


def _examples(
    run: Trained, files: Iterable[pathlib.Path]
) -> Iterator[tuple[Sequence[Told], dict[str, np.ndarray]]]:
    """Yields rows of tables and the like, with the input columns that the run's files have."""
    own, inputs = _source_of(run.experiment, Files), run.inputs_known
    labels = own.labels if own else ()
    joined = {name: inputs.joined[name] for name in run.columns if name in inputs.joined}
    columns = _stored(run.experiment, [name for name in run.columns if name not in joined])
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
                with naming(inputs, name, told, values):
                    batch[name], _ = inputs.read(name, values)
            yield told, batch


def _rows_in(file: pathlib.Path, length: int) -> Iterator[tuple[list[Told], np.ndarray]]:
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


def _texts(
    run: Trained, files: Iterable[pathlib.Path]
) -> Iterator[tuple[Told, str | tuple[str, ...]]]:
    """Yields lines of texts; of tables and the like what the columns of the run's texts hold."""
    encoder, windows = run.inputs_known.encoder, _source_of(run.experiment, CharText)
    own = (windows.column if windows else run.column,)
    names = encoder.columns[run.column] if encoder else own
    for file in files:
        if places.kind(file) in (None, ".txt"):
            yield from _lines(file, len(names) == 2)
            continue
        dataset = Files(str(file), _stored(run.experiment, names)).open("train")
        for told, rows in _rows_in(file, len(dataset)):
            taken = dataset.take(rows)
            for where, *values in zip(told, *(taken[name] for name in names), strict=True):
                texts = tuple(as_text(x, functools.partial(place, where)) for x in values)
                yield where, texts if len(names) == 2 else texts[0]


def _lines(file: pathlib.Path, pairs: bool) -> Iterator[tuple[Told, str | tuple[str, ...]]]:
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


def _source_of(experiment: Experiment, kind: type) -> Any:
    """Returns the source of a kind that the data is made of, a split of it, say; or None."""
    source = experiment.data.source
    while not isinstance(source, kind) and hasattr(source, "source"):
        source = source.source
    return source if isinstance(source, kind) else None


def _stored(experiment: Experiment, names: Sequence[str]) -> dict[str, Any]:
    """Returns by name the columns of a file, as the run's own files have them, else so called."""
    own = _source_of(experiment, Files)
    known = own.columns if own and isinstance(own.columns, Mapping) else {}
    return {name: known.get(name, name) for name in names}
