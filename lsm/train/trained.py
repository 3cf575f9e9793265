"""A trained model in Python: loaded, and asked for predictions."""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import flax
import jax
import numpy as np

from lsm.config import Experiment, schema
from lsm.config.origin import CONFIG, as_now, experiment_of, saved_config
from lsm.data.inputs import Inputs, Lengths
from lsm.data.texts.codec import Codec, codec_of
from lsm.data.texts.template import Message
from lsm.data.values import narrowed, not_finite
from lsm.errors import CheckpointError, ConfigError, DataError, listed
from lsm.files import expanded
from lsm.generate import Decoder, Piece, Sampling, Stop, Written, collected, write
from lsm.mesh import Mesh, batch_sharding, batch_ways, jit, local_rows, make_mesh, place, replicated
from lsm.models import Lora
from lsm.params import flat, nested
from lsm.run.weights import open_run
from lsm.tasks import Batch, LanguageModelling, MaskedLanguageModelling, ModelState, Params
from lsm.tasks.base import CONSTANTS
from lsm.train.program import make_predict, shardings_of
from lsm.train.splits import check_pixels
from lsm.train.trainer import prepare_jax
from lsm.train.workdir import INPUTS, inputs_of

_log = logging.getLogger("lsm.train")

Prompt = str | Sequence[Message]
"""A text that goes on, or a conversation that is answered."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained model in memory: what `load` returns.

    Attributes:
      experiment: what was trained.
      step: updates that made the parameters.
      params: parameters, averaged ones where the run kept an average; on `mesh`.
      model_state: the other collections, averaged likewise.
      mesh: the devices.
      inputs: what the model reads; None where an earlier version of lsm has not kept it.
    """

    experiment: Experiment
    step: int
    params: Params
    model_state: ModelState
    mesh: jax.sharding.Mesh
    inputs: Inputs | None = None

    def predict(self, given: Batch | Any) -> dict[str, np.ndarray]:
        """Returns what `Task.predict` says of examples, (B, ...), and `Task.named`.

        Args:
          given: the columns that the task's inputs need, (B, ...) by name; or, where they are one,
            that column: an array, the file of a picture or several, a text or several, or pairs of
            texts, or rows of a table with classes in it, as the run's data has them
            (`Inputs.read`). Names of classes stand for their numbers. Any B; each new one compiles
            once. 64-bit numbers are taken as 32-bit ones. Several processes
            all give the same. Random streams are those of the first batch of an evaluation. Warns
            of numbers that are not finite, as what is said of such rows may mean nothing.

        Raises:
          CheckpointError: the parameters are not those of this model on such inputs.
          DataError: a column is missing or of another shape, columns are not of one length, or a
            file or text cannot be read.
        """
        lengths = None
        if not isinstance(given, Mapping):
            given, lengths = self.inputs_known.asked(self.column, given)
            if not isinstance(self.experiment.task, LanguageModelling):
                lengths = None  # what is said is not of tokens
        elif self.inputs is not None:
            given = {
                n: x for name in given for n, x in self.inputs.known(name, given[name]).items()
            }
        named, joined = (self.inputs.names, self.inputs.joined) if self.inputs else ({}, {})
        columns = self.inputs.columns if self.inputs else {}
        # Not those that may be ids of tokens, and as many as there are.
        numbers = {n for n, x in columns.items() if x.dtype.kind not in "iu" or len(x.shape) != 1}

        def read(name: str, x: Any) -> np.ndarray:
            told = name in joined or (name in named and _is_text(x)) or name in numbers
            return self.inputs.read(name, x)[0] if told else np.asarray(x)

        batch = {name: read(name, x) for name, x in given.items()}
        for name, rows in not_finite(batch).items():
            line = "predict: column %r is not finite in %d of %d rows, the first is [%d]."
            _log.warning(line, name, len(rows), len(batch[name]), rows[0])
        return self.answered(batch, lengths)

    def answered(self, batch: Batch, lengths: Lengths | None = None) -> dict[str, np.ndarray]:
        """Returns what `predict` does, of columns as the model reads them, without a warning."""
        columns = self.inputs.columns if self.inputs else {}
        check_pixels("predict", self.experiment.task.plain, batch, columns)
        found = self._predictions(batch)
        if lengths is not None:  # the first of a text is not predicted
            found = {name: cut(x, lengths - 1) for name, x in found.items()}
        names = self.inputs and self.inputs.called(self.experiment.task)
        return found | (self.experiment.task.named(found, names) if names else {})

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_tokens: int = 256,
        sampling: Sampling = Sampling(),
        samples: int = 1,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[Written]:
        """Returns what a language model writes after prompts: `samples` texts for each, in order.

        Sample k of prompt i is the same whatever else is asked for, up to rounding.

        Args:
          prompts: a text, or a conversation, a list of messages with "role" and "content" that is
            answered by the model's chat template; or several.
          max_tokens: tokens of a text, at the most; it also ends with a token that ends a text.
          sampling: how tokens are drawn; `lsm.generate.GREEDY` takes the likeliest.
          samples: texts for each prompt.
          stop: strings that end a text, and are not part of it.
          seed: of all that is drawn.

        Raises:
          ConfigError: the model writes no texts, a prompt is as long as its context, the seed is
            negative, or there are no samples.
          DataError: a prompt has characters that the run does not know, or is a conversation and
            there is no template.
        """
        if samples < 1:
            raise ConfigError(f"samples: {samples} given; allowed: 1 or more.")
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        if given and isinstance(given[0], Mapping):  # one conversation
            given = [given]
        if not given:
            return []
        pieces = self._pieces(given, max_tokens, sampling, samples, stop, seed)
        return collected(pieces, len(given) * samples)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        sampling: Sampling = Sampling(),
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> Iterator[str]:
        """Yields the text that `generate` returns, as it is written."""
        pieces = self._pieces([prompt], max_tokens, sampling, 1, stop, seed)
        return (piece.text for piece in pieces)

    def _pieces(self, prompts, max_tokens, sampling, samples, stop, seed) -> Iterator[Piece]:
        if seed < 0:
            raise ConfigError(f"seed: {seed} given; allowed: 0 or more.")
        codec = self.codec
        ids = [codec.encode(p) if isinstance(p, str) else codec.chat(p) for p in prompts]
        ends = Stop(longest=max_tokens, tokens=codec.ends_at(stop), strings=stop)
        seeds = [
            int(np.random.SeedSequence((seed, number, sample)).generate_state(1)[0])
            for number in range(len(prompts))
            for sample in range(samples)
        ]
        rows = [row for row in ids for _ in range(samples)]
        return write(self.decoder, rows, codec.text, ends, sampling, seeds)

    @functools.cached_property
    def codec(self) -> Codec:
        """Text to the ids that the model reads, and back."""
        return codec_of(self.inputs_known)

    @functools.cached_property
    def decoder(self) -> Decoder:
        """The model as it writes, adapters merged; raises ConfigError where it does not."""
        task, params, state = self.experiment.task, self.params, self.model_state
        model = task.model
        if isinstance(model, Lora):
            model, params = model.model, model.merged(params, state[CONSTANTS])
            state = {}
        if not hasattr(model, "extend"):
            raise ConfigError(
                f"generate: {type(task).__name__} of {type(model).__name__} writes no texts; a "
                "GPT is needed."
            )
        return Decoder(model, {"params": params, **state}, self.mesh)

    @property
    def inputs_known(self) -> Inputs:
        """The inputs; raises ConfigError where they are not known."""
        if self.inputs is None:
            raise ConfigError(
                f"predict: the run has kept no {INPUTS}; give columns by name, as arrays."
            )
        return self.inputs

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that the task's inputs are made of; raises as `inputs_known`."""
        columns = self.inputs_known.columns
        example = {name: np.zeros((1, *x.shape), x.dtype) for name, x in columns.items()}
        self.experiment.task.inputs(asked := _Asked(example))
        encoder = self.inputs_known.encoder
        beside = () if encoder is None else encoder.beside
        return tuple(dict.fromkeys(name for name in asked.names if name not in beside))

    @property
    def column(self) -> str:
        """The one column of `columns`; raises DataError where there are others."""
        if len(self.columns) != 1:
            raise DataError(
                f"predict: the task's inputs are {listed(self.columns) or 'not told by name'}; "
                "give columns by name."
            )
        return self.columns[0]

    def _predictions(self, batch: Batch) -> dict[str, np.ndarray]:
        batch = {name: narrowed(np.asarray(x), name) for name, x in batch.items()}
        rows, sharding = _rows(batch), batch_sharding(self.mesh)
        missing = -rows % batch_ways(self.mesh)  # rows to fill up, so that all devices have as many
        mine = np.minimum(local_rows(sharding, rows + missing), rows - 1)
        placed = place({name: x[mine] for name, x in batch.items()}, sharding)
        number = np.int32(0)
        try:
            found = self._predict(
                self.params, self.model_state, placed, number, np.int32(self.step)
            )
        except flax.errors.FlaxError as error:  # a parameter is missing, or has another shape
            reason = str(error).split(" (http")[0]
            raise CheckpointError(
                f"step {self.step} does not fit {type(self.experiment.task.model).__name__} on "
                f"such inputs: {reason}"
            ) from error
        return {name: x[:rows] for name, x in jax.device_get(found).items()}

    @functools.cached_property
    def _predict(self) -> Callable[..., dict[str, jax.Array]]:
        rows, whole = batch_sharding(self.mesh), replicated(self.mesh)
        held = jax.tree.map(lambda x: x.sharding, (self.params, self.model_state))
        return jit(
            make_predict(self.experiment.task, self.experiment.train.seed),
            in_shardings=(*held, rows, whole, whole),
            out_shardings=whole,
            mesh=self.mesh,
        )


class _Asked(dict):
    """A batch that remembers which columns were read."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        super().__init__(columns)
        self.names: list[str] = []

    def __getitem__(self, name: str) -> np.ndarray:
        self.names.append(name)
        return super().__getitem__(name)


def _is_text(values: Any) -> bool:
    return np.asarray(values).dtype.kind in "OU"


def cut(x_BxT: np.ndarray, lengths: Lengths) -> np.ndarray:
    """Returns rows of their own lengths (B,), at least 0, as an object array (B,)."""
    rows = np.empty(len(x_BxT), object)
    rows[:] = [row[: max(length, 0)] for row, length in zip(x_BxT, lengths, strict=True)]
    return rows


def _rows(batch: Mapping[str, np.ndarray]) -> int:
    lengths = {name: len(x) if x.ndim else 0 for name, x in batch.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise DataError(
            f"predict: columns of lengths {lengths} given; one length above 0 is needed."
        )
    return next(iter(lengths.values()))


def load(
    workdir: os.PathLike | str,
    *,
    experiment: Experiment | None = None,
    step: int | Literal["best", "last"] = "best",
    mesh: Mesh | None = None,
    devices: list[jax.Device] | None = None,
) -> Trained:
    """Loads what a run has trained; neither its data nor its optimiser state is read.

    Of a distillation that is the student, with its own task; the teacher is not needed.

    Args:
      workdir: folder of the run.
      experiment: what it ran; None finds it (`lsm.config.origin.experiment_of`).
      step: the "best" checkpoint (the last where no evaluation chose one), the "last", or a step.
      mesh: how to lay the parameters out; None is the experiment's mesh, or, on one device, that.
      devices: where; None is all of them.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
      ConfigError: the experiment cannot be rebuilt.
      MeshError: the mesh does not fit the devices.
    """
    prepare_jax()
    folder = expanded(workdir, "--workdir")
    experiment = _of_task(folder, experiment)
    experiment = dataclasses.replace(experiment, task=experiment.task.plain)
    devices = jax.devices() if devices is None else devices
    mesh = mesh or (experiment.mesh if len(devices) > 1 else Mesh(rules=experiment.mesh.rules))
    experiment = dataclasses.replace(experiment, mesh=dataclasses.replace(mesh, offload=False))
    laid_out = make_mesh(experiment.mesh, devices)
    with open_run(workdir, step) as (weights, found):
        # Rules say "params/..." and "model_state/..." as in a training state.
        tree = nested(weights.spec)
        params = {"params": tree.pop("params", {})}
        shardings = shardings_of(experiment, laid_out, params | {"model_state": tree})
        shardings = flat({"params": shardings["params"], **shardings["model_state"]})
        arrays = nested({**weights.read(shardings), **{path: {} for path in weights.empties}})
    params, inputs = arrays.pop("params", {}), inputs_of(folder)
    if inputs is not None:
        special = isinstance(experiment.task, MaskedLanguageModelling)  # which fills [MASK]
        inputs = dataclasses.replace(inputs, evaluate=experiment.data.evaluate, special=special)
    return Trained(experiment, found, params, arrays, laid_out, inputs)


def _of_task(workdir: pathlib.Path, given: Experiment | None) -> Experiment:
    """Returns the experiment of a run; one that is given must have the task of its config."""
    if given is None:
        return experiment_of(workdir)
    if not (workdir / CONFIG).exists():
        return given
    saved = as_now(saved_config(workdir))
    changes = schema.differences({"task": saved.get("task")}, {"task": schema.to_json(given.task)})
    if changes:
        raise ConfigError(f"{workdir} holds a run of another task: {schema.told(changes)}.")
    return given
