"""What inputs and outputs of a model are like on data that it was measured on, to see a drift."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lsm.config.origin import origin_of
from lsm.errors import ConfigError
from lsm.files import expanded
from lsm.train.trained import Trained, load
from lsm.train.trainer import Trainer, prepare_jax

EXAMPLES = 4096
"""Examples that are looked at, at the most: the first of the split."""

_BINS = 20
_COLUMNS = 1000
"""Columns of an array (B, K) that have a histogram each, at the most."""


def of_run(
    workdir: os.PathLike | str,
    *,
    step: int | Literal["best", "last"] = "best",
    data_dir: os.PathLike | str | None = None,
) -> dict[str, Any]:
    """Returns statistics of the first examples of a run's validation split, as JSON values.

    "inputs" and "outputs" have, of each array by name: "mean", "std", "min" and "max" of its
    numbers, and "counts" between "edges", ascending: (bins,), or (K, bins) of an array (B, K), such
    as probabilities by class. The last bin holds its upper edge too.

    Args:
      workdir: folder of the run.
      step: which checkpoint, see `lsm.load`.
      data_dir: where the data is; None is where the run had it.

    Raises:
      ConfigError: the run has no evaluation split.
      DataError: the data is not there.
    """
    prepare_jax()
    run = load(workdir, step=step, devices=jax.devices()[:1])
    data_dir = data_dir or origin_of(expanded(workdir, "--workdir")).data_dir
    batches = Trainer.of(run.experiment, data_dir).evaluation
    if not batches:
        raise ConfigError("--statistics: the run has no validation or test split to look at.")
    split = "validation" if "validation" in batches else next(iter(batches))
    given, made = zip(*_examples(run, batches[split]), strict=True)
    examples = min(EXAMPLES, len(batches[split].dataset))
    return {"split": split, "examples": examples, "inputs": _all(given), "outputs": _all(made)}


def _examples(
    run: Trained, batches: Any
) -> Iterator[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]:
    """Yields the columns and the predictions of batches, without what only fills up the last."""
    left = min(EXAMPLES, len(batches.dataset))
    for number in range(len(batches)):
        if left <= 0:
            return
        batch = batches.batch_at(number)
        found = run.answered(batch)
        read = {name: np.asarray(batch[name])[:left] for name in run.columns}
        yield read, {name: x[:left] for name, x in found.items()}
        left -= batches.batch_size


def _all(batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    # A list: texts are as long as the longest of their batch, and cannot stand in one array.
    numbers = [name for name, x in batches[0].items() if _is_real(x.dtype)]
    return {name: _of([_plain(batch[name]) for batch in batches]) for name in numbers}


def _is_real(dtype: np.dtype) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))


def _plain(x: np.ndarray) -> np.ndarray:
    """In a dtype of NumPy's own: bfloat16 is none."""
    return x.astype(np.float32) if x.dtype.kind == "V" else x


def _is_narrow(shape: tuple[int, ...]) -> bool:
    return len(shape) == 1 and shape[0] <= _COLUMNS


def _of(parts: list[np.ndarray]) -> dict[str, Any]:
    values_N = np.concatenate([np.ravel(part) for part in parts]).astype(np.float64)
    finite_N = values_N[np.isfinite(values_N)]
    if not finite_N.size:
        return {"finite": 0}
    low, high = finite_N.min(), finite_N.max()
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    columns = [values_N]
    widths = {part.shape[1:] for part in parts}  # of texts, those of their batches
    if parts[0].dtype.kind == "f" and len(widths) == 1 and _is_narrow(*widths):
        columns = np.concatenate(parts).astype(np.float64).T
    counts = [np.histogram(x[np.isfinite(x)], edges)[0].tolist() for x in columns]
    return {
        "mean": finite_N.mean(),
        "std": finite_N.std(),
        "min": low,
        "max": high,
        "edges": edges.tolist(),
        "counts": counts[0] if len(counts) == 1 else counts,
    }
