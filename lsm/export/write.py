"""An exported model, written: the folder appears when it is whole."""

import contextlib
import dataclasses
import glob
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from lsm.data import images
from lsm.data.transforms import CenterCrop
from lsm.errors import ConfigError, DataError, listed, nearest
from lsm.export.artefact import (
    CARD,
    PLATFORMS,
    PREDICT,
    PREPROCESSING,
    SIGNATURE,
    STATISTICS,
    TOKENIZER,
    Signature,
    digest,
)
from lsm.export.card import card, figures
from lsm.export.spec import Array
from lsm.export.traced import traced
from lsm.export.weights import stored
from lsm.files import expanded, plain_json, readable_disk_errors, remove_old
from lsm.run.result import versions
from lsm.train.trained import Trained, load
from lsm.train.trainer import prepare_jax
from lsm.train.workdir import CHAT

Platform = Literal["cpu", "cuda", "tpu"]

CONTEXT = 1024
"""Positions of a decoder's cache, where its own context is not shorter."""

_SHARD = 5_000_000_000
"""Bytes of a file of weights, at the most; a larger array has its own."""


def export(
    workdir: os.PathLike | str,
    out: os.PathLike | str,
    *,
    step: int | Literal["best", "last"] = "best",
    platforms: Sequence[Platform] = PLATFORMS,
    context: int | None = None,
    statistics: Mapping[str, Any] | None = None,
) -> Signature:
    """Writes the model of a run as a folder that `lsm.export.load` reads.

    Args:
      workdir: folder of the run; neither its data nor its optimiser state is read.
      out: new folder.
      step: which checkpoint, see `lsm.load`.
      platforms: what it is lowered for.
      context: positions of prompt and text together in a decoder's cache; None is what the model
        has, 1024 at the most.
      statistics: what goes into `statistics.json`, as `lsm.export.statistics.of_run` makes it.

    Raises:
      ConfigError: `out` is there already, or something in the model cannot be exported.
      CheckpointError: there is no such checkpoint, or it is damaged.
      TrainingError: the disk is full or cannot be written.
    """
    target = _new(out)
    prepare_jax()
    run = load(workdir, step=step, devices=jax.devices()[:1])
    told = figures(expanded(workdir, "--workdir"), run.step)
    return write(run, target, platforms, context, statistics, told)


def write(
    run: Trained,
    out: os.PathLike | str,
    platforms: Sequence[Platform] = PLATFORMS,
    context: int | None = None,
    statistics: Mapping[str, Any] | None = None,
    told: str = "",
) -> Signature:
    """Writes a model that is loaded, on one device, as `export` does; `told` is for its card."""
    target = _new(out)
    if not platforms:
        raise ConfigError(f"--platforms: none given; allowed: {listed(PLATFORMS)}.")
    for name in platforms:
        if name not in PLATFORMS:
            hint = nearest(name, PLATFORMS)
            raise ConfigError(f"--platforms: {name!r} given; allowed: {listed(PLATFORMS)}.{hint}")
    positions = _context(run, context)
    functions, weights = traced(run, tuple(platforms), positions)
    with _folder(target) as made:
        for function, module in functions.values():
            (made / function.file).write_bytes(module)
        shards = _write_weights(made, weights)
        _write_beside(made, run, statistics)
        signature = Signature(
            name=run.experiment.name,
            step=run.step,
            platforms=tuple(platforms),
            functions={name: function for name, (function, _) in functions.items()},
            weights={name: Array.of(x) for name, x in weights.items()},
            shards=shards,
            labels=_labels(run, functions[PREDICT][0].outputs),
            context=positions,
            ends=tuple(sorted(_ends(run))) if positions else (),
            versions={n: v for n, v in versions().items() if n in ("lsm", "jax", "jaxlib")},
            files={},
        )
        (made / CARD).write_text(card(signature, run, told))
        files = {path.name: digest(path) for path in sorted(made.iterdir())}
        signature = dataclasses.replace(signature, files=files)
        (made / SIGNATURE).write_bytes(signature.to_json())
    return signature


def _new(out: os.PathLike | str) -> pathlib.Path:
    target = expanded(out, "--out")
    if target.exists():
        raise ConfigError(f"--out: {target} is there already; give a new folder.")
    return target


@contextlib.contextmanager
def _folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder beside `target`, which becomes that in one move, or goes."""
    with readable_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        begins = f".{target.name}.exporting-"
        remove_old(target.parent, f"{glob.escape(begins)}*")
        made = pathlib.Path(tempfile.mkdtemp(prefix=begins, dir=target.parent))
        try:
            yield made
            made.chmod(0o777 & ~_umask())
            made.rename(target)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _context(run: Trained, asked: int | None) -> int | None:
    """Returns the positions of a decoder's cache; None where the model writes no texts."""
    try:
        longest = run.decoder.context
    except ConfigError:
        if asked is not None:
            raise ConfigError("--context: given, but the model writes no texts.") from None
        return None
    most = longest or asked or CONTEXT
    if asked is not None and not 2 <= asked <= most:
        raise ConfigError(f"--context: {asked} given; allowed: 2 to {most}.")
    return asked or min(most, CONTEXT)


def _write_weights(folder: pathlib.Path, weights: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Writes the arrays into as many files as there must be; returns the names in each."""
    from safetensors.numpy import save_file

    parts = _parts({name: Array.of(x).nbytes for name, x in weights.items()})
    shards = {}
    for number, names in enumerate(parts, 1):
        several = f"-{number:05d}-of-{len(parts):05d}" if len(parts) > 1 else ""
        path = folder / f"model{several}.safetensors"
        save_file({n: stored(np.asarray(jax.device_get(weights[n]))) for n in names}, path)
        path.chmod(0o666 & ~_umask())  # it is made for its owner alone
        shards[path.name] = tuple(names)
    return shards


def _parts(sizes: Mapping[str, int]) -> list[list[str]]:
    parts, held = [[]], 0
    for name, size in sizes.items():
        if held and held + size > _SHARD:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    return parts


def _write_beside(folder: pathlib.Path, run: Trained, statistics: Any) -> None:
    """Writes what makes columns of pictures and texts, and the statistics."""
    inputs, task = run.inputs_known, run.experiment.task
    crops = [{"size": images.as_size(t.size, "size"), "resize": t.resize}
             for t in inputs.evaluate if type(t) is CenterCrop]  # fmt: skip
    record = {
        "columns": run.columns,
        "inputs": inputs.to_json(),
        # Others are the run's own code, which is not in the folder.
        "crops": crops if len(crops) == len(inputs.evaluate) else None,
        "in_the_model": {
            name: getattr(task, name) for name in ("mean", "std") if hasattr(task, name)
        },
    }
    (folder / PREPROCESSING).write_text(json.dumps(record, indent=1))
    if statistics is not None:
        (folder / STATISTICS).write_text(json.dumps(plain_json(statistics), indent=1))
    if inputs.encoder is not None:
        (folder / TOKENIZER).write_text(inputs.encoder.tokenizer)
        if inputs.encoder.chat is not None:
            (folder / CHAT).write_text(json.dumps(inputs.encoder.chat, indent=1))


def _labels(run: Trained, outputs: Mapping[str, Array]) -> tuple[str, ...] | None:
    """The names of what the output "label" numbers."""
    names = run.inputs_known.called(run.experiment.task)
    return tuple(map(str, names)) if names and "label" in outputs else None


def _ends(run: Trained) -> frozenset[int]:
    try:
        return run.codec.ends
    except DataError:  # its tokens are made of no text
        return frozenset()
