"""A published model opened: what its config.json tells of, with names for its tensors."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from lsm.errors import CheckpointError, ConfigError, listed, nearest
from lsm.files import expanded, parsed_json
from lsm.interop.family import Family
from lsm.interop.table import Table
from lsm.interop.tensors import Tensors, open_tensors

CONFIG = "config.json"
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "preprocessor_config.json",
)
"""What stands beside the weights of a model, and goes with it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Published:
    """A published model: what `open_model` returns.

    Attributes:
      path: the folder or the file.
      config: what its config.json holds, or what a GGUF file says in its stead.
      family: its architecture.
      model: the Linen module.
      names: how its arrays are called there, for `Start.names`.
      tensors: the arrays, mapped into memory.
      files: what stands beside them, such as tokenizer.json: content by name.
    """

    path: pathlib.Path
    config: Mapping[str, Any]
    family: Family
    model: Any
    names: Table
    tensors: Tensors
    files: Mapping[str, bytes]


def open_model(path: os.PathLike | str) -> Published:
    """Opens a folder with config.json and safetensors, or a GGUF file; reads headers alone.

    To fine-tune it:

        published = open_model("models/Qwen3-0.6B")
        task = LanguageModelling(model=published.model)
        start = Start(path=str(published.path), names=published.names)

    Raises:
      ConfigError: the architecture is not known, or a field of its config is not expressed here.
      CheckpointError: a file is missing or damaged.
    """
    path = expanded(path, "model")
    if path.suffix == ".gguf":
        from lsm.interop import gguf

        tensors, config, files = gguf.opened(path)
    else:
        config = read_config(path)
        tensors, files = open_tensors(path), _beside(path)
    family = family_of(config)
    model = family.read(config)
    names = as_in(family.names_of(model), tensors.specs)
    return Published(path, config, family, model, names, tensors, files)


def as_in(names: Table, there: Collection[str]) -> Table:
    """Returns names as they are spelled in a file: without a prefix, or as TensorFlow's norms."""
    if there and not any(name.startswith(names.prefix) for name in there):
        names = names.respelled(rf"^{re.escape(names.prefix)}", "", prefix="")
    if any(name.endswith("LayerNorm.gamma") for name in there):
        names = names.respelled(r"LayerNorm\.weight$", "LayerNorm.gamma")
        names = names.respelled(r"LayerNorm\.bias$", "LayerNorm.beta")
    return names


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """Returns what a folder's config.json holds; raises CheckpointError where it is no object."""
    path = folder / CONFIG
    if not path.is_file():
        there = sorted(x.name for x in folder.iterdir()) if folder.is_dir() else []
        has = f"; it has {listed(there)}" if there else ""
        raise CheckpointError(f"{folder} has no {CONFIG}{has}.")
    try:
        config = parsed_json(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    return config


def _beside(folder: pathlib.Path) -> dict[str, bytes]:
    found = {name: folder / name for name in TEXT_FILES}
    files = {name: path.read_bytes() for name, path in found.items() if path.is_file()}
    for name, content in files.items():
        if name.endswith(".json"):
            try:
                parsed_json(content)
            except ValueError as error:
                raise CheckpointError(f"{folder / name} is damaged: {error}.") from error
    return files


def families() -> tuple[Family, ...]:
    """Returns the tables of all architectures."""
    from lsm.interop import decoders, encoders  # each holds a model of its kind

    return (*decoders.FAMILIES, *encoders.FAMILIES)


def family_of(config: Mapping[str, Any]) -> Family:
    """Returns the table of a config.json's architecture; raises ConfigError where there is none."""
    known = {family.architecture: family for family in families()}
    given = config.get("architectures")
    if given is None:  # of old files: the language model is meant
        kinds = {family.model_type: family for family in reversed(families())}
        if (kind := config.get("model_type")) in kinds:
            return kinds[kind]
        raise ConfigError(
            f"config.json: model_type: {kind!r} given; allowed: {listed(kinds)}."
            f"{nearest(str(kind), kinds)}"
        )
    name = given[0] if isinstance(given, list) and len(given) == 1 else given
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"config.json: architectures: {given!r} given; allowed: {listed(known, 20)}."
            f"{nearest(str(name), known)}"
        )
    return known[name]
