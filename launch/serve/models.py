"""What can be served, and where its versions are."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from launch.command import LaunchError, require_installed
from lsm.data.texts.encoder import CHARACTERS, Encoder
from lsm.errors import DataError, listed
from lsm.files import nothing_at


class Tensor(Protocol):
    """What a model says of an input or an output.

    Attributes:
      shape: whole numbers, and symbols ("b") for sizes that vary.
      dtype: of NumPy or ml_dtypes, or its name.
    """

    shape: Sequence[int | str]
    dtype: np.dtype | str


class Range(Protocol):
    """The sizes that a symbol may have; `most` is None where any is allowed."""

    least: int
    most: int | None


class Signature(Protocol):
    """The inputs and outputs of a model, and the symbols in their shapes, by name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    symbols: Mapping[str, Range]


class Servable(Protocol):
    """A function of named arrays.

    Attributes:
      signature: where all inputs and outputs begin with the same symbol, it is the batch, of
        which the model computes every row for itself.
      labels: names of classes, where there are some.
    """

    signature: Signature
    labels: Sequence[str] | None

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs."""
        ...


EMBEDDING = "embedding"
"""The output of a model that gives a vector for each text (`lsm.models.Embedder`)."""

Load = Callable[[pathlib.Path], Servable]
"""Reads a version from its folder. Raises LsmError where it cannot."""


class Exported:
    """The predictions of an artefact of `lsm.export`; see `Servable`."""

    def __init__(self, model: Any):
        """Takes what `lsm.export.load` gives. Raises LaunchError where it predicts nothing."""
        functions = model.signature.functions
        if "predict" not in functions:
            raise LaunchError(f"it has {listed(functions)}; a function `predict` is needed here.")
        self._model, self.signature, self.labels = model, functions["predict"], model.labels

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the predictions for columns, by name."""
        return self._model(inputs)

    @property
    def embeds(self) -> bool:
        """Whether it gives one vector for each text."""
        told = self.signature.outputs.get(EMBEDDING)
        return told is not None and len(told.shape) == 2 and self._encoder is not None

    def texts(self, texts: Sequence[str]) -> tuple[dict[str, np.ndarray], int]:
        """Returns the columns (B, ...) that texts become, and how many tokens they have.

        Raises:
          DataError: a text is longer than what the model reads: the rest would be cut off.
        """
        encoder = self._encoder
        (name,) = encoder.columns
        # Of a text of blanks or of endless words a part is read, however few tokens it has.
        most = CHARACTERS * encoder.length
        for number, text in enumerate(texts, 1):
            if len(text) > most:
                raise DataError(f"text {number} has {len(text)} characters; {most} are looked at.")
        special = sum(map(len, encoder.around(name)))
        counts = [
            len(tokens) + special
            for tokens in encoder.tokens.encode_batch(list(texts), add_special_tokens=False)
        ]
        _check_lengths(counts, encoder.length)
        return self._model.preprocess(list(texts)), sum(counts)

    def ids(self, rows: Sequence[Sequence[int]]) -> tuple[dict[str, np.ndarray], int]:
        """Returns the same of texts that come as ids of the model's tokens, special ones included.

        Raises:
          DataError: one is no id, or a text is longer than what the model reads.
        """
        encoder = self._encoder
        (name,) = encoder.columns
        known = len(encoder.names)
        _check_lengths(list(map(len, rows)), encoder.length)
        for number, row in enumerate(rows, 1):
            if wrong := next((x for x in row if not 0 <= x < known), None):
                raise DataError(f"text {number}: {wrong} given; ids are 0 to {known - 1}.")
        columns = encoder.filled(name, {name: [np.array(row, np.int64) for row in rows]})
        return columns, sum(map(len, rows))

    @functools.cached_property
    def _encoder(self) -> Encoder | None:
        """How texts become columns; None where it reads something else, or pairs."""
        known = (self._model.preprocessing or {}).get("inputs", {}).get("texts")
        if known is None or [len(of) for of in known["columns"].values()] != [1]:
            return None
        return Encoder.from_json(known, self._model.content("tokenizer.json").decode())


def _check_lengths(counts: Sequence[int], most: int) -> None:
    for number, count in enumerate(counts, 1):
        if count > most:
            raise DataError(f"text {number} has {count} tokens; at most {most} are read.")


def load(folder: pathlib.Path) -> Servable:
    """Returns the artefact in `folder`. Raises LsmError where it is none, or damaged."""
    from lsm import export

    try:
        model = Exported(export.load(folder))
        if model.embeds:  # else each request for embeddings would find that it is missing
            require_installed("text", ("tokenizers",))
        return model
    except LaunchError as error:
        raise LaunchError(f"{folder}: {error}") from error


def batch_symbol(signature: Signature) -> str | None:
    """Returns the symbol that all inputs and outputs begin with, None where there is none."""
    firsts = {
        tensor.shape[0] if tensor.shape else None
        for tensors in (signature.inputs, signature.outputs)
        for tensor in tensors.values()
    }
    first = firsts.pop() if len(firsts) == 1 else None
    return first if isinstance(first, str) else None


def versions(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folders of the versions in `folder`, by number, oldest first.

    They are its subfolders 1, 2, ...; a folder that is itself an artefact is version 1.

    Raises:
      LaunchError: there is nothing to serve in it.
    """
    if not folder.is_dir():
        raise LaunchError(nothing_at(folder))
    inner = [path for path in folder.iterdir() if _is_number(path.name) and _is_artefact(path)]
    found = {path.name: path for path in sorted(inner, key=lambda path: int(path.name))}
    if found:
        return found
    if _is_artefact(folder):
        return {"1": folder}
    raise LaunchError(
        f"{folder}: neither signature.json nor folders 1, 2, ... that hold one; "
        "give a folder that lsm.export has written, or the workdir of a run that writes texts."
    )


CURRENT = "current"
"""Link beside the versions to the one that a server begins with."""


def first(folder: pathlib.Path) -> tuple[str, pathlib.Path]:
    """Returns the version that a server begins with: that of the link `current`, else the newest.

    Raises:
      LaunchError: there is nothing to serve, or the link names no version.
    """
    found = versions(folder)
    link = folder / CURRENT
    number = str(link.readlink()) if link.is_symlink() else list(found)[-1]
    if number not in found:
        raise LaunchError(f"{link}: names {number!r}; there are {listed(found)}.")
    return number, found[number]


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and name[0] != "0" and len(name) < 10


def _is_artefact(folder: pathlib.Path) -> bool:
    return (folder / "signature.json").is_file()
