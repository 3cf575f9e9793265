"""A published model as a workdir, and a workdir as a published model."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsm.config import Experiment, Start, Train, schema
from lsm.config.origin import CONFIG, saved_config
from lsm.data import Data, Files, Folder, Source, Subwords, Texts, Tokens
from lsm.data.inputs import Inputs
from lsm.data.texts.codec import codec_of
from lsm.data.texts.encoder import Encoder, around_as_trained
from lsm.data.texts.template import ChatTemplate
from lsm.durations import Horizon
from lsm.errors import ConfigError, DataError, TrainingError
from lsm.files import atomic_write, exclusive, expanded, parsed_json, readable_disk_errors
from lsm.interop.export import SHARD, exported
from lsm.interop.family import filled
from lsm.interop.opened import TEXT_FILES, Published, open_model
from lsm.mesh import Mesh, make_mesh, replicated
from lsm.models import GPT, Classifier, MaskedLM, ResNet, TokenClassifier, ViT
from lsm.optim import SGD
from lsm.params import flat, nested
from lsm.run.checkpoint import Checkpoints
from lsm.run.weights import FileWeights, NamedWeights, RunWeights, open_run
from lsm.tasks import (
    Classification,
    LanguageModelling,
    MaskedLanguageModelling,
    Task,
    TextClassification,
    TokenClassification,
)
from lsm.train.program import Program, build
from lsm.train.progress import Progress
from lsm.train.start import match
from lsm.train.state import TrainState
from lsm.train.trainer import prepare_jax
from lsm.train.workdir import INPUTS, TOKENIZER, inputs_of

_log = logging.getLogger("lsm")

KEPT = "published.json"
"""What an import keeps of a model's config.json, and the dtypes of its tensors, for an export."""

GENERATION = "generation_config.json"

Batch = Mapping[str, jax.ShapeDtypeStruct]

_TOKENIZERS = ((TOKENIZER,), ("vocab.txt",), ("vocab.json", "merges.txt"))
"""Files that make a tokenizer: its own, BERT's, GPT-2's."""

_GROUP = 1 << 28
"""Bytes of small arrays that an export reads at once."""

_LONGEST = 1024  # tokens of a text that an evaluation reads at once, unless more are asked for


def import_model(
    path: os.PathLike | str, workdir: os.PathLike | str, *, mesh: Mesh | None = None
) -> Experiment:
    """Makes a published model a workdir, which is read as that of a run is; returns its experiment.

    The parameters are held as float32, and read array by array into their places on the mesh. Files
    of the tokenizer stay beside them.

    Args:
      path: folder with config.json and safetensors, or a GGUF file.
      workdir: folder; it must hold no run.
      mesh: how parameters are laid out; None is each device a part of them.

    Raises:
      ConfigError: the architecture or a field of its config is not expressed here.
      CheckpointError: a file is damaged, or tensors are missing, left over, or of another shape.
      TrainingError: the workdir is taken or cannot be written.
    """
    prepare_jax()
    published, workdir = open_model(path), expanded(workdir, "--workdir").absolute()
    if (workdir / CONFIG).exists() or any(workdir.glob("checkpoints/*")):
        raise ConfigError(f"--workdir: {workdir} holds a run already; give another folder.")
    experiment = _experiment(published, workdir, mesh or Mesh(data=1, fsdp=-1))
    schema.check(experiment)
    batch = examples(experiment, published)
    program = build(experiment, Horizon(1, 1, 1), batch)
    weights = _weights(published, program)
    with readable_disk_errors(workdir):
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    taken = TrainingError(f"--workdir: another run is in progress in {workdir}.")
    with exclusive(workdir / ".lock", taken):
        for name, content in published.files.items():
            atomic_write(workdir / name, content)
        records = _records(workdir, experiment, published, batch)
        with contextlib.closing(
            Checkpoints(workdir / "checkpoints", checksums=program.checksums)
        ) as checkpoints:
            checkpoints.save(0, _state(program, weights), dataclasses.asdict(Progress()))
        for name, record in records.items():
            atomic_write(workdir / name, json.dumps(record, indent=2).encode())
    return experiment


def export_run(
    workdir: os.PathLike | str, out: os.PathLike | str, *, shard: int = SHARD
) -> tuple[str, int]:
    """Writes the best checkpoint of a workdir as a folder that `transformers` loads.

    Tensors of an import get the dtypes back that they had, others are float32. Arrays are read and
    written in parts.

    Args:
      workdir: of an import or a run, whose model is one of those that can be imported.
      out: folder; it must be new or empty.
      shard: bytes of a file, at most; several get an index.

    Returns:
      The architecture's name, and the checkpoint's step.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
      ConfigError: no published architecture expresses the model; names the field.
      TrainingError: the disk is full or cannot be written.
    """
    prepare_jax()
    folder = expanded(workdir, "--workdir")
    advice = "Its model is in a script, which an export does not run."
    model = schema.from_json(saved_config(folder).get("task"), Task, advice).model
    inputs = inputs_of(folder)
    kept, files = _kept(folder, inputs)
    if inputs is not None and inputs.encoder is not None and kept is None:
        files[TOKENIZER] = around_as_trained(inputs.encoder, hasattr(model, "extend")).encode()
    classes = inputs and inputs.classes
    with open_run(folder, "best") as (weights, step):
        read = _Reader(weights)
        beside = {"origin": kept, "files": files, "classes": classes}
        name = exported(model, weights.spec, read, out, **beside, shard=shard)
    return name, step


class _Reader:
    """Reads arrays in groups: each one compiles the check of its sums."""

    def __init__(self, weights: RunWeights):
        self._weights, self._held = weights, {}
        self._whole = replicated(make_mesh(Mesh(), jax.devices()[:1]))
        self._groups, size = [[]], 0
        for path, spec in weights.spec.items():
            if size and size + spec.size * spec.dtype.itemsize > _GROUP:
                self._groups.append([])
                size = 0
            self._groups[-1].append(path)
            size += spec.size * spec.dtype.itemsize

    def __call__(self, path: str) -> np.ndarray:
        if path not in self._held:
            (group,) = (group for group in self._groups if path in group)
            self._held = {}
            self._held = self._weights.read(dict.fromkeys(group, self._whole))
        return np.asarray(self._held[path])


def _kept(
    workdir: pathlib.Path, inputs: Inputs | None
) -> tuple[dict[str, Any] | None, dict[str, bytes]]:
    """Returns what an import has kept of the published model, and the files beside it."""
    path = workdir / KEPT
    try:
        kept = parsed_json(path.read_bytes()) if path.exists() else None
        names = TEXT_FILES if kept is None else kept["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it to go without.") from error
    paths = {name: workdir / name for name in names if (workdir / name).is_file()}
    files = {name: file.read_bytes() for name, file in paths.items()}
    if GENERATION not in files and inputs is not None and inputs.encoder is not None:
        ends = sorted(codec_of(inputs).ends)
        files |= {GENERATION: json.dumps({"eos_token_id": ends}).encode()} if ends else {}
    return kept, files


def _weights(published: Published, program: Program) -> NamedWeights:
    """Returns the tensors by the paths here; raises CheckpointError where they do not fit."""
    state, start = program.abstract_state, Start(path=str(published.path), names=published.names)
    here = flat({"params": state.params, **state.model_state})
    weights = FileWeights(published.tensors, published.path)
    weights = NamedWeights(weights, published.names, here)
    match(start, here, weights)
    return weights


def _state(program: Program, weights: NamedWeights) -> TrainState:
    """Returns the state at step 0, an array at a time; the optimiser has counters alone."""
    state = program.abstract_state
    here = flat({"params": state.params, **state.model_state})
    arrays = {}
    # The largest first: while it is made of its parts, there is no other yet.
    for path in sorted(here, key=lambda path: -here[path].size):
        found = weights.read({path: here[path].sharding})[path]
        same = found.dtype == here[path].dtype
        arrays[path] = found if same else jax.block_until_ready(found.astype(here[path].dtype))
    tree = nested(arrays)
    zeros = jax.tree.map(
        lambda x: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding), state.opt_state
    )
    step = jax.device_put(np.int32(0), state.step.sharding)
    return TrainState(step, tree.pop("params"), tree, zeros)


def _records(
    workdir: pathlib.Path, experiment: Experiment, published: Published, batch: Batch
) -> dict[str, Any]:
    """Returns what says what the workdir holds, by name; config.json is the last to be there."""
    dtypes = {name: str(spec.dtype) for name, spec in published.tensors.specs.items()}
    kept = {"config": published.config, "dtypes": dtypes, "files": [*published.files]}
    source = experiment.data.source
    encoder = _encoder(source, published, workdir) if isinstance(source, Texts) else None
    columns = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in batch.items()}
    inputs = Inputs(columns, _classes(published.config), encoder=encoder)
    if encoder is not None and TOKENIZER not in published.files:
        atomic_write(workdir / TOKENIZER, encoder.tokenizer.encode())
    return {KEPT: kept, INPUTS: inputs.to_json(), CONFIG: schema.to_json(experiment)}


def _encoder(source: Texts, published: Published, workdir: pathlib.Path) -> Encoder:
    """Returns the encoder of a model's texts, with its chat template and the ids that end texts."""
    try:
        chat = ChatTemplate.of(workdir).to_json()
    except DataError:  # there is none
        chat = None
    told = parsed_json(published.files.get(GENERATION, b"{}"))
    eos = told.get("eos_token_id", published.config.get("eos_token_id"))
    ends = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    return dataclasses.replace(source.encoder(), chat=chat, eos=ends)


def _classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = config.get("id2label")
    if not isinstance(names, dict):
        return None
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _experiment(published: Published, workdir: pathlib.Path, mesh: Mesh) -> Experiment:
    """Returns an experiment of the model; its data is to be named by who evaluates it."""
    devices = jax.device_count()
    return Experiment(
        name=published.path.resolve().stem,
        task=_task(published),
        data=Data(source=_source(published, workdir), validation=None, test="train"),
        optimizer=SGD(learning_rate=1e-3),
        train=Train(steps=1, batch_size=devices),
        mesh=mesh,
    )


def _task(published: Published) -> Task:
    model = published.model
    if isinstance(model, Classifier | ViT | ResNet) and model.outputs == 1:
        raise ConfigError(
            "config.json: num_labels: 1 given; allowed: 2 or more. To transformers one is a number "
            "to regress, and here the logit of a class."
        )
    match model:
        case GPT():
            return LanguageModelling(model=model)
        case MaskedLM():
            tokenizer = _tokenizer(published)
            mask = tokenizer and tokenizer.token_to_id("[MASK]")
            if mask is None:
                raise ConfigError("tokenizer.json: has no token '[MASK]', which is what is learnt.")
            added = tokenizer.get_added_tokens_decoder().items()
            special = tuple(number for number, token in added if token.special)
            return MaskedLanguageModelling(model=model, mask=mask, special=special)
        case Classifier():
            return TextClassification(model=model)
        case TokenClassifier():
            return TokenClassification(model=model)
        case ViT() | ResNet():
            mean, std = _scale(published)
            return Classification(model=model, mean=mean, std=std)
    raise ConfigError(
        f"config.json: architectures: {published.family.architecture!r} has no head, so there is "
        "nothing that a workdir could evaluate; start from the folder itself, by Start(path=..., "
        "names=open_model(...).names)."
    )


def _tokenizer(published: Published) -> Any | None:
    import tokenizers

    content = published.files.get(TOKENIZER)
    return content and tokenizers.Tokenizer.from_str(content.decode())


def _scale(published: Published) -> tuple[Any, Any]:
    """Returns mean and deviation of pixels, as preprocessor_config.json says."""
    content = published.files.get("preprocessor_config.json")
    if content is None:
        _log.warning("import: no preprocessor_config.json; pixels are not shifted nor scaled.")
        return 0.0, 1.0
    given = parsed_json(content)
    factor = given.get("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-3 or not given.get("do_rescale", True):
        raise ConfigError(f"preprocessor_config.json: rescale_factor: {factor} given; 1 / 255 is.")
    if not given.get("do_normalize", True):
        return 0.0, 1.0
    for name in ("image_mean", "image_std"):
        if name not in given:  # each of transformers' processors has its own
            raise ConfigError(
                f"preprocessor_config.json: {name}: is not there; it is needed, or do_normalize "
                "false."
            )
    mean, std = given["image_mean"], given["image_std"]
    return tuple(mean) if isinstance(mean, list) else mean, (
        tuple(std) if isinstance(std, list) else std
    )


def _source(published: Published, workdir: pathlib.Path) -> Source:
    """Returns where an evaluation would look: texts.txt or pictures/ in the workdir."""
    model = published.model
    if isinstance(model, ViT | ResNet):
        return Folder(str(workdir / "pictures"), size=_side(published))
    context = filled(model)["context"]
    if not any({*names} <= {*published.files} for names in _TOKENIZERS):
        _log.warning("import: there is no tokenizer; tokens are to be given by their numbers.")
        return Tokens(str(workdir / "tokens"), length=min(context, _LONGEST))
    generates = isinstance(model, GPT)
    return Texts(
        Files(str(workdir / ("texts.txt" if generates else "texts.csv"))),
        Subwords(path=str(workdir)),
        {"tokens": "text"},
        length=min(context, _LONGEST) + generates,
        pack=generates,
    )


def _side(published: Published) -> int:
    side = published.config.get("image_size", 224)
    if not isinstance(side, int):
        raise ConfigError(f"config.json: image_size: {side!r} given; allowed: a whole number.")
    return side


def examples(experiment: Experiment, published: Published) -> Batch:
    """Returns the shapes of a batch of what the model reads; no data is there yet."""
    rows, source = experiment.train.batch_size, experiment.data.source
    if isinstance(source, Texts):
        spec = source.tokens_spec()
    elif isinstance(source, Tokens):
        spec = {"tokens": jax.ShapeDtypeStruct((source.length + 1,), np.int32)}
        if not isinstance(published.model, GPT):
            spec["tokens_length"] = jax.ShapeDtypeStruct((), np.int32)
    else:
        side = _side(published)
        spec = {"image": jax.ShapeDtypeStruct((side, side, 3), np.uint8)}
    return {name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for name, x in spec.items()}
