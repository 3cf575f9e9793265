"""What a model is asked about, as the columns that it reads.

Arrays and texts of characters need NumPy alone. Files of pictures, and texts that a tokenizer
encodes, are read by `lsm.data`, which needs lsm's own dependencies.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lsm.errors import DataError, ExportError, listed
from lsm.export.artefact import PREPROCESSING, TOKENIZER, Artefact
from lsm.export.spec import shown


def columns(artefact: Artefact, values: Any) -> dict[str, np.ndarray]:
    """Returns the columns (B, ...) of values, as `lsm.load(RUN).predict` takes them.

    Args:
      artefact: of the model.
      values: columns by name, or that of the one column which the model reads: an array (B, ...);
        the file of a picture or several; a text or several, or pairs of texts.

    Raises:
      DataError: they are of another kind or shape.
      ExportError: the artefact says nothing of it, or a library that reads such is not installed.
    """
    try:
        known = artefact.json(PREPROCESSING)
        inputs, asked = known["inputs"], known["columns"]
        if not isinstance(values, Mapping):
            if len(asked) != 1:
                raise DataError(f"preprocess: the model reads {listed(asked)}; give them by name.")
            values = {asked[0]: values}
        made = [_column(artefact, known, inputs, name, x) for name, x in values.items()]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ExportError(
            f"{artefact.folder / PREPROCESSING}: cannot be used: {reason}."
        ) from error
    return {name: x for one in made for name, x in one.items()}


def _column(
    artefact: Artefact, known: Mapping, inputs: Mapping, name: str, values: Any
) -> dict[str, np.ndarray]:
    if name in inputs["columns"] and _numbers(values) and not _are_parts(inputs, name, values):
        shape = inputs["columns"][name][0]
        given, texts = np.asarray(values), "texts" in inputs or inputs["characters"] is not None
        if given.ndim != 1 + len(shape) or (not texts and given.shape[1:] != tuple(shape)):
            wanted = shown(("B", *shape))
            raise DataError(
                f"preprocess: {name!r} of shape {given.shape} given; {wanted} is needed."
            )
        return {name: given}
    if inputs["characters"] is not None:
        return {name: _characters(inputs["characters"], values)}
    return _by_data(artefact, known, name, values)


def _numbers(values: Any) -> bool:
    if isinstance(values, str | bytes | os.PathLike):
        return False
    try:
        return np.asarray(values).dtype.kind in "biuf"
    except ValueError as error:  # of rows of different lengths
        raise DataError(f"preprocess: {error}.") from error


def _are_parts(inputs: Mapping, name: str, values: Any) -> bool:
    """Says whether numbers are rows of what is joined in a column, by the rule of `Inputs.read`."""
    parts, shape = inputs.get("joined", {}).get(name), tuple(inputs["columns"][name][0])
    return parts is not None and (np.shape(values)[1:] != shape or shape == (len(parts),))


def _characters(characters: str, texts: str | Sequence[str]) -> np.ndarray:
    texts = [texts] if isinstance(texts, str) else list(texts)
    numbers = {character: number for number, character in enumerate(characters)}
    tokens_NxT = np.zeros((len(texts), max(map(len, texts), default=0)), np.int32)
    for row, text in zip(tokens_NxT, texts, strict=True):
        if unknown := [character for character in text if character not in numbers]:
            raise DataError(
                f"preprocess: character {unknown[0]!r} is none of {len(numbers)} known."
            )
        row[: len(text)] = [numbers[character] for character in text]
    return tokens_NxT


def _by_data(artefact: Artefact, known: Mapping, name: str, values: Any) -> dict[str, np.ndarray]:
    """The columns that `lsm.data.inputs` makes, as it does for a run."""
    try:
        from lsm.data.inputs import Inputs
        from lsm.data.transforms import CenterCrop

        if known["crops"] is None and not _are_texts(known, name):
            raise ExportError(
                f"preprocess: pictures of {name!r} go through changes of the run's own; give "
                "arrays as the model reads them."
            )
        has = TOKENIZER in artefact.signature.files
        tokenizer = artefact.content(TOKENIZER).decode() if has else None
        crops = [
            CenterCrop(size=tuple(c["size"]), resize=c["resize"]) for c in known["crops"] or ()
        ]
        inputs = Inputs.from_json(known["inputs"], tokenizer)
        inputs = dataclasses.replace(inputs, evaluate=tuple(crops))
        if name not in inputs.columns:
            raise DataError(f"preprocess: {name!r} given; columns: {listed(inputs.columns)}.")
        return inputs.asked(name, values)[0]
    except ModuleNotFoundError as error:
        raise ExportError(
            f"preprocess: {name!r} is read by lsm's own dependencies, of which {error.name!r} is "
            "not installed; install lsm with them, or give arrays as the model reads them."
        ) from error


def _are_texts(known: Mapping, name: str) -> bool:
    return name in known["inputs"].get("texts", {}).get("columns", {})
