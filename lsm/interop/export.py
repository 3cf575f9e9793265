"""A model written as Hugging Face's: config.json, safetensors, and the files beside them."""

import json
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lsm.errors import CheckpointError, ConfigError, listed
from lsm.files import atomic_write, expanded, readable_disk_errors
from lsm.interop.family import Family, filled
from lsm.interop.names import Names
from lsm.interop.opened import CONFIG, families, family_of
from lsm.interop.tensors import FILE, INDEX

SHARD = 5_000_000_000
"""Bytes of a file of safetensors, at most; a larger tensor has its own."""

_log = logging.getLogger("lsm")

Spec = Mapping[str, jax.ShapeDtypeStruct]


def exported(
    model: Any,
    here: Spec,
    read: Callable[[str], np.ndarray],
    out: os.PathLike | str,
    *,
    origin: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    shard: int = SHARD,
) -> str:
    """Writes a model as a folder that `transformers` loads; returns its architecture.

    Args:
      model: the Linen module.
      here: shape and dtype of its arrays, by path.
      read: path -> the array.
      out: folder; it must be new or empty.
      origin: what an import has kept: "config", "dtypes" of the tensors, "prefix"; None is another
        model, whose config.json is made anew and whose tensors are float32.
      files: what stands beside, such as tokenizer.json: content by name.
      shard: bytes of a file, at most.

    Raises:
      ConfigError: no architecture expresses the model, or `out` is not empty.
      TrainingError: the disk is full or cannot be written.
    """
    out = expanded(out, "--out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out: {out} is there already; give a folder that is new or empty.")
    family, config = _config(model, here, origin or {})
    names = family.names_of(model)
    if origin and not origin.get("prefix", True):
        names = names.without_prefix()
    sources = writable(names, here)
    dtypes = (origin or {}).get("dtypes", {})
    plan = _Plan(sources, here, dtypes, shard)
    with readable_disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        plan.write(out, read)
    for name, content in (files or {}).items():
        atomic_write(out / name, content)
    atomic_write(out / CONFIG, json.dumps(config, indent=2).encode())
    return family.architecture


def writable(names: Names, here: Spec) -> dict[str, Any]:
    """Returns the source of each array, which must have an inverse."""
    sources = dict(names.sources(here))
    if missing := [path for path in here if path not in sources]:
        raise ConfigError(f"export: arrays without a name there: {listed(missing)}.")
    if opaque := [path for path, source in sources.items() if source.inverse is None]:
        raise ConfigError(f"export: no inverse is known of {listed(opaque)}.")
    return sources


def _config(model: Any, here: Spec, origin: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    kept = origin.get("config")
    if kept is not None:
        family = family_of(kept)
        if filled(family.read(kept)) == filled(model):
            return family, dict(kept)
        if not family.is_of(model):
            family.write(model)  # says which field
    else:
        family = _family_for(model)
    config = family.write(model) | family.told(filled(model), here)
    return family, {**config, "dtype": "float32"} if kept is None else {**kept, **config}


def _family_for(model: Any) -> Family:
    for family in families():
        if family.is_of(model):
            return family
    kinds = [family for family in families() if type(family.model) is type(model)]
    told = []
    for family in kinds:
        try:
            family.write(model)
        except ConfigError as error:
            told.append(f"{family.architecture}: {error}")
    raise ConfigError(
        f"export: no published architecture has a {type(model).__name__} like this"
        + (f"; {'; '.join(told)}" if told else ".")
    )


class _Plan:
    """Which tensor stands in which file, before any is written."""

    def __init__(self, sources: Mapping[str, Any], here: Spec, dtypes: Mapping[str, str], most):
        self._sources, self._dtypes = sources, dtypes
        self._shards: list[dict[str, tuple[str, int | None, int]]] = [{}]
        size = 0
        for path, source in sources.items():
            stack = here[path].shape[0] if source.layers else 1
            each = here[path].size // stack // len(source.tensors)
            for layer in range(source.layers or 1):
                for number, name in enumerate(source.layer(layer)):
                    bytes_ = each * self._dtype(name).itemsize
                    if size and size + bytes_ > most:
                        self._shards.append({})
                        size = 0
                    size += bytes_
                    place = (path, layer if source.layers else None, number)
                    self._shards[-1][name] = place

    def _dtype(self, name: str) -> np.dtype:
        return np.dtype(jax.numpy.dtype(self._dtypes.get(name, "float32")))

    def write(self, out: pathlib.Path, read: Callable[[str], np.ndarray]) -> None:
        count, files, size = len(self._shards), {}, 0
        for number, shard in enumerate(self._shards, 1):
            name = FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            size += self._write_one(out / name, shard, read)
            files |= dict.fromkeys(shard, name)
        if count > 1:
            index = {"metadata": {"total_size": size}, "weight_map": files}
            atomic_write(out / INDEX, json.dumps(index, indent=2).encode())

    def _write_one(self, path: pathlib.Path, shard: Mapping[str, Any], read: Callable) -> int:
        from safetensors.numpy import save_file

        tensors, held = {}, {}
        for name, (at, layer, number) in shard.items():
            if at not in held:
                held = {at: read(at)}  # one at a time
            array = held[at] if layer is None else held[at][layer]
            tensor = self._sources[at].inverse(array)[number]
            tensors[name] = np.ascontiguousarray(tensor.astype(self._dtype(name)))
        if not tensors:
            raise CheckpointError(f"export: {path.name} would hold no tensor.")
        save_file(tensors, path, metadata={"format": "pt"})
        return sum(x.nbytes for x in tensors.values())
