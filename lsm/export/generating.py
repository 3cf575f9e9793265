"""Texts of an exported decoder: the likeliest token, again and again."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from lsm.errors import DataError, ExportError
from lsm.export.artefact import DECODE, PREFILL

_LEAST = 16
"""Tokens that a prompt is padded to at the least: few programs, however long prompts are."""


def greedy(
    model: Any, prompts: Sequence[Sequence[int]], most: int, ends: Collection[int]
) -> list[np.ndarray]:
    """See `lsm.export.Model.generate`."""
    context, rows = model.signature.context, [_ids(prompt) for prompt in prompts]
    if context is None:
        raise ExportError("generate: the model writes no texts.")
    if not rows or most < 1:
        raise DataError(f"generate: {len(rows)} prompts, max_tokens={most}; at least one of each.")
    lengths_B = np.array([len(row) for row in rows], np.int32)
    if lengths_B.max() + most > context:
        raise DataError(
            f"generate: {lengths_B.max()} tokens given and {most} to come, where the context "
            f"is {context}."
        )
    _check_known(rows, model.signature.functions[PREFILL].outputs["logits"].shape[-1])
    # The next power of two.
    width = min(max(_LEAST, 1 << (int(lengths_B.max()) - 1).bit_length()), context)
    tokens_BxT = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(tokens_BxT, rows, strict=True):
        row[: len(ids)] = ids
    found = model.call(PREFILL, {"tokens": tokens_BxT, "lengths": lengths_B})
    written_BxN, ended_B = [], np.zeros(len(rows), bool)
    while True:
        token_B = np.asarray(found["token"])
        written_BxN.append(token_B)
        ended_B |= np.isin(token_B, list(ends))
        if ended_B.all() or len(written_BxN) == most:
            return [_until(row, ends) for row in np.stack(written_BxN, axis=1)]
        cache = {name: x for name, x in found.items() if name.startswith("cache/")}
        found = model.call(DECODE, {"token": found["token"], **cache})


def _ids(prompt: Sequence[int]) -> np.ndarray:
    try:
        ids = np.asarray(prompt)
    except ValueError as error:  # of rows of different lengths
        raise DataError(f"generate: a prompt is no ids: {error}.") from error
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise DataError(
            f"generate: a prompt of {ids.dtype} {ids.shape} given; ids (n,) are needed."
        )
    return ids


def _check_known(rows: Sequence[np.ndarray], vocabulary: int) -> None:
    low, high = min(row.min() for row in rows), max(row.max() for row in rows)
    if low < 0 or high >= vocabulary:
        raise DataError(
            f"generate: ids from {low} to {high} given; the model knows 0 to {vocabulary - 1}."
        )


def _until(ids_N: np.ndarray, ends: Collection[int]) -> np.ndarray:
    """Returns ids up to the first that ends a text, and with it."""
    (where,) = np.nonzero(np.isin(ids_N, list(ends)))
    return ids_N[: where[0] + 1] if where.size else ids_N
