"""A model written as Hugging Face's: config.json, safetensors, and the files beside them."""

import collections
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lsm.errors import ConfigError, listed
from lsm.files import atomic_write, expanded, readable_disk_errors
from lsm.interop.family import HARMLESS, Family, filled
from lsm.interop.names import Names, Source
from lsm.interop.opened import CONFIG, as_in, families, family_of
from lsm.interop.parts import labels, unnamed
from lsm.interop.tensors import FILE, INDEX
from lsm.params import flat

SHARD = 5_000_000_000
"""Bytes of a file of safetensors, at most; a larger tensor has its own."""

Spec = Mapping[str, jax.ShapeDtypeStruct]
Read = Callable[[str], np.ndarray]


def save_model(
    model: Any,
    variables: Mapping[str, Any],
    out: os.PathLike | str,
    *,
    files: Mapping[str, bytes] | None = None,
) -> str:
    """Writes a model and its variables as a folder that `transformers` loads, in float32.

    Args:
      model: the Linen module.
      variables: what `model.init` gives: "params", and other collections.
      out: folder; it must be new or empty.
      files: what stands beside, such as tokenizer.json: content by name.

    Returns:
      The name of its architecture.

    Raises:
      ConfigError: no architecture expresses the model, or `out` is not empty.
      TrainingError: the disk is full or cannot be written.
    """
    arrays = flat(dict(variables))
    return exported(model, arrays, lambda path: np.asarray(arrays[path]), out, files=files)


def exported(
    model: Any,
    here: Spec,
    read: Read,
    out: os.PathLike | str,
    *,
    origin: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    classes: Sequence[str] | None = None,
    shard: int = SHARD,
) -> str:
    """Writes a model as a folder that `transformers` loads; returns its architecture.

    Args:
      model: the Linen module.
      here: shape and dtype of its arrays, by path.
      read: path -> the array.
      out: folder; it must be new or empty.
      origin: what an import has kept: "config", and "dtypes" of the tensors by name; None is
        another model, whose config.json is made anew and whose tensors are float32.
      files: what stands beside, such as tokenizer.json: content by name.
      classes: what the classes are called, where the import has not said it.
      shard: bytes of a file, at most.

    Raises:
      ConfigError: no architecture expresses the model, or `out` is not empty.
      TrainingError: the disk is full or cannot be written.
    """
    out = expanded(out, "--out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out: {out} is there already; give a folder that is new or empty.")
    family, config = _config(model, here, origin or {})
    if classes and unnamed(len(classes)).items() <= config.items():
        config |= labels(classes)
    dtypes = (origin or {}).get("dtypes", {})
    names = as_in(family.names_of(model), dtypes)
    sources = writable(names, here)
    shards = _shards(dict(_parts(sources, here, dtypes)), shard)
    with readable_disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        _write(out, shards, sources, read)
    for name, content in (files or {}).items():
        atomic_write(out / name, content)
    atomic_write(out / CONFIG, json.dumps(config, indent=2).encode())
    return family.architecture


def writable(names: Names, here: Spec) -> dict[str, Source]:
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
        family = family_for(model)
    config = family.write(model) | family.told(filled(model), here)
    told = {"dtype": "float32"} if kept is None else kept
    return family, {key: value for key, value in told.items() if key in HARMLESS} | config


def family_for(model: Any) -> Family:
    """Returns the first architecture that has such a model; raises ConfigError where none has."""
    for family in families():
        if family.is_of(model):
            return family
    kinds = [family for family in families() if type(family.model) is type(model)]
    told = []
    for family in kinds:
        try:
            family.write(model)
        except ConfigError as error:
            told.append(f"{family.architecture}: {str(error).rstrip('.')}")
    raise ConfigError(
        f"export: no published architecture has a {type(model).__name__} like this"
        + "".join(f"; {line}" for line in told)
        + "."
    )


class _Part(NamedTuple):
    """One tensor of a file: of which array here, of which layer, the how-manieth made of it."""

    path: str
    layer: int | None
    number: int
    dtype: np.dtype
    size: int


def _parts(
    sources: Mapping[str, Source], here: Spec, dtypes: Mapping[str, str]
) -> Iterator[tuple[str, _Part]]:
    """Yields the name and the part of every tensor."""
    common = collections.Counter(dtypes.values()).most_common(1)
    usual = common[0][0] if common else "float32"
    for path, source in sources.items():
        shape = here[path].shape if source.layers is None else here[path].shape[1:]
        sizes = [x.size for x in source.inverse(np.broadcast_to(np.float32(0), shape))]
        for layer in [None] if source.layers is None else range(source.layers):
            for number, name in enumerate(source.layer(layer or 0)):
                dtype = jax.numpy.dtype(dtypes.get(name, usual))
                yield name, _Part(path, layer, number, dtype, sizes[number] * dtype.itemsize)


def _shards(parts: Mapping[str, _Part], most: int) -> list[dict[str, _Part]]:
    """Returns which tensors stand in which file."""
    shards, size = [{}], 0
    for name, part in parts.items():
        if size and size + part.size > most:
            shards.append({})
            size = 0
        shards[-1][name] = part
        size += part.size
    return shards


def _write(
    out: pathlib.Path, shards: list[dict[str, _Part]], sources: Mapping[str, Source], read: Read
) -> None:
    """Writes the files of tensors, and their index where there are several."""
    from safetensors.numpy import save_file

    files, held = {}, _Held(sources, read)
    for number, shard in enumerate(shards, 1):
        file = FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: held(part) for name, part in shard.items()}, out / file, {"format": "pt"})
        (out / file).chmod(out.stat().st_mode & 0o666)  # it is made for its owner alone
        files |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(part.size for shard in shards for part in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": files}
        atomic_write(out / INDEX, json.dumps(index, indent=2).encode())


class _Held:
    """Makes tensors, and holds the array and the layer that the last one was of."""

    def __init__(self, sources: Mapping[str, Source], read: Read):
        self._sources, self._read = sources, read
        self._array = self._made = (None, None)

    def __call__(self, part: _Part) -> np.ndarray:
        if self._array[0] != part.path:
            self._array = part.path, self._read(part.path)
        if self._made[0] != (part.path, part.layer):
            array = self._array[1] if part.layer is None else self._array[1][part.layer]
            self._made = (part.path, part.layer), self._sources[part.path].inverse(array)
        return np.ascontiguousarray(self._made[1][part.number].astype(part.dtype))
