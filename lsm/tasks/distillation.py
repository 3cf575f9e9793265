"""Distillation: a student learns from labels and from what a teacher says of the same examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lsm import losses
from lsm.checks import require
from lsm.errors import ConfigError, DataError, listed, nearest
from lsm.interop import Names
from lsm.metrics import Weighted, weigh
from lsm.models.initializers import LECUN
from lsm.models.sequences import Sequences
from lsm.tasks.base import (
    CONSTANTS,
    INTERMEDIATES,
    PROJECTIONS,
    TEACHER,
    Batch,
    ModelState,
    Params,
    Rngs,
    Task,
)
from lsm.tasks.labels import Labelled
from lsm.tasks.language import LanguageModelling

_KINDS = (Labelled, LanguageModelling)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained model that a student learns from.

    It reads the batch by its own task: its own columns, mean and deviation.

    Attributes:
      task: its model, and what it reads.
      path: workdir of the run that has trained it, or safetensors, as of `Start.path`. It is read
        again at every start of the student's run, and has to stay as it is until that ends.
      rename: as of `Start`; paths here are the teacher's own, "params/Dense_0/kernel".
      names: as of `Start`.
    """

    task: Task
    # Wherever it is now, its arrays are compared.
    path: str = dataclasses.field(metadata={"alters_run": False})
    rename: tuple[tuple[str, str], ...] = ()
    names: Names | None = None


@dataclasses.dataclass(frozen=True)
class Match:
    """A layer of the student that learns to give what one of the teacher gives.

    Its loss is the mean squared error over features (FitNets, arXiv:1412.6550; TinyBERT,
    arXiv:1909.10351). Where the student's are fewer or more, a matrix that is trained with it makes
    as many of them as the teacher has.

    Attributes:
      student: path of a layer, such as "Conv_1" or "stage_2_block_0"; of a Transformer "block_0"
        and so on are the residual stream after its blocks.
      teacher: likewise of the teacher.
      weight: times the error.
    """

    student: str
    teacher: str
    weight: float = 1.0

    def __post_init__(self):
        require(self, weight="(0, inf)")


class Taught(NamedTuple):
    """What both models say of a batch.

    Attributes:
      student: outputs of its `forward`.
      teacher: likewise.
      features: of each `Match`, the student's (B, ..., D), projected, and the teacher's.
    """

    student: Any
    teacher: Any
    features: tuple[tuple[jax.Array, jax.Array], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Task):
    """Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531) of classifiers and GPTs.

    The loss is (1 - share) x the student's own + share x T^2 KL(teacher || student), both softmaxes
    at the temperature T, of every example or token that the student's loss counts, by its weight;
    and the errors of `features`. The teacher runs as in evaluation, on the batch as the student
    gets it, after augmentation. It lies in the collection "constants" under "teacher": it is not
    trained and has no gradient, and is never saved.

    Evaluation, predictions and what is loaded of a run are those of the student alone.

    Attributes:
      student: the task that is learnt, of a smaller model.
      teacher: what it is learnt from.
      temperature: T.
      share: of the teacher in the loss.
      features: layers that are matched.
    """

    model: nn.Module = dataclasses.field(init=False, repr=False, compare=False)
    student: Task
    teacher: Teacher
    temperature: float = 4.0
    share: float = 0.5
    features: tuple[Match, ...] = ()

    def __post_init__(self):
        require(self, temperature="(0, inf)", share="[0, 1]")
        for field, task in (("student", self.student), ("teacher.task", self.teacher.task)):
            if not isinstance(task, _KINDS):
                raise ConfigError(
                    f"Distillation.{field}: {type(task).__name__} given; allowed: classification, "
                    "of anything, or language modelling."
                )
        own, theirs = map(_classes, (self.student, self.teacher.task))
        if None not in (own, theirs) and own != theirs:
            raise ConfigError(
                f"Distillation.teacher.task: its model tells {theirs} classes or tokens apart, and "
                f"the student's {own}; as many are needed."
            )
        object.__setattr__(self, "model", self.student.model)

    @property
    def plain(self) -> Task:
        """The student's task."""
        return self.student

    @property
    def unit(self) -> str:
        """As of the student."""
        return self.student.unit

    @property
    def streams(self) -> tuple[str, ...]:
        """As of the student."""
        return self.student.streams

    def inputs(self, batch: Batch) -> Any:
        """Returns the student's."""
        return self.student.inputs(batch)

    def weights(self, batch: Batch, train: bool) -> jax.Array | np.ndarray | None:
        """Returns the student's."""
        return self.student.weights(batch, train)

    def augment(self, batch: Batch, rngs: Rngs) -> Batch:
        """Returns what the student's task makes of a batch."""
        return self.student.augment(batch, rngs)

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, ModelState]:
        """As `Task.init`, with the teacher, and projections where features are matched."""
        params, model_state = self.student.init(key, batch)
        theirs, their_state = self.teacher.task.init(key, batch)
        constants = dict(model_state.get(CONSTANTS, {}))
        if TEACHER in constants or PROJECTIONS in params:
            raise ConfigError(
                f"Distillation.student: its model has {TEACHER!r} or {PROJECTIONS!r} of its own."
            )
        constants[TEACHER] = {"params": theirs, **their_state}
        model_state = {**model_state, CONSTANTS: constants}
        found = jax.eval_shape(lambda: self._forwards(params, model_state, batch, {}, False, 0)[1])
        drawn = {
            str(number): {"matrix": LECUN(jax.random.fold_in(key, number), sizes, jnp.float32)}
            for number, sizes in enumerate(map(_sizes, self.features, found))
            if sizes[0] != sizes[1]
        }
        return ({**params, PROJECTIONS: drawn} if drawn else params), model_state

    def forward(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: Rngs,
        train: bool,
        step: jax.Array,
    ) -> tuple[Any, ModelState]:
        """As `Task.forward`; in training the outputs are `Taught`, else the student's."""
        if not train:
            return self.student.forward(*_own(params, model_state), batch, rngs, train, step)
        outputs, found, changed = self._forwards(params, model_state, batch, rngs, train, step)
        matrices = params.get(PROJECTIONS, {})  # no kernels, which would be pruned with the model's
        features = tuple(
            (x @ matrices[str(number)]["matrix"] if str(number) in matrices else x, theirs)
            for number, (x, theirs) in enumerate(found)
        )
        return Taught(*outputs, features), changed

    def metrics(
        self, outputs: Any, batch: Batch, train: bool, step: jax.Array
    ) -> dict[str, Weighted]:
        """Returns the student's; in training with "soft_loss", T^2 KL, and "own_loss".

        And of features, their mean error, not yet weighed, as "feature_loss/0", ....
        """
        if not train:
            return self.student.metrics(outputs, batch, train, step)
        own = self.student.metrics(outputs.student, batch, train, step)
        soft = self._soft_loss(outputs, batch)
        errors = {
            f"feature_loss/{number}": self._error(*pair, batch)
            for number, pair in enumerate(outputs.features)
        }
        total, weight = own["loss"]
        total = (1 - self.share) * total + self.share * soft.sum
        for match, error in zip(self.features, errors.values(), strict=True):
            total += match.weight * error.mean * weight
        told = {"own_loss": own["loss"], "soft_loss": soft}
        return {**own, "loss": Weighted(total, weight), **told, **errors}

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Returns the student's."""
        return self.student.predictions(outputs, batch)

    def named(
        self, predictions: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns the student's."""
        return self.student.named(predictions, names)

    def after_update(
        self, params: Params, model_state: ModelState, step: jax.Array
    ) -> tuple[Params, ModelState]:
        """As the student's; what it is taught by stays as it is."""
        own, state = self.student.after_update(*_own(params, model_state), step)
        kept = {name: params[name] for name in params if name == PROJECTIONS}
        return {**own, **kept}, {**state, CONSTANTS: model_state[CONSTANTS]}

    def summary(self, totals: Mapping[str, Weighted]) -> dict[str, float]:
        """Returns the student's figures."""
        return self.student.summary(totals)

    def check(self, batch: Batch) -> None:
        """Raises DataError where a batch is not what both need."""
        self.student.check(batch)
        try:
            self.teacher.task.check(batch)
        except DataError as error:
            raise DataError(f"of the teacher: {error}") from error

    def _forwards(
        self, params: Params, model_state: ModelState, batch: Batch, rngs: Rngs, train: bool, step
    ) -> tuple[tuple[Any, Any], list[tuple[jax.Array, jax.Array]], ModelState]:
        """Returns the outputs of both, their matched features, and what the student changed."""
        teacher = jax.lax.stop_gradient(model_state[CONSTANTS][TEACHER])
        theirs = {name: tree for name, tree in teacher.items() if name != "params"}
        own, state = _own(params, model_state)
        if self.features:
            state, theirs = ({**of, INTERMEDIATES: {}} for of in (state, theirs))
        said, changed = self.student.forward(own, state, batch, rngs, train, step)
        call = (teacher["params"], theirs, batch, rngs, False, step)
        their_said, their_changed = self.teacher.task.forward(*call)
        layers = [x.get(INTERMEDIATES, {}) for x in (changed, their_changed)]
        found = [
            (_layer(layers[0], match, "student"), _layer(layers[1], match, "teacher"))
            for match in self.features
        ]
        changed = {name: tree for name, tree in changed.items() if name != INTERMEDIATES}
        return (said, their_said), found, changed

    def _soft_loss(self, outputs: Taught, batch: Batch) -> Weighted:
        theirs, logits_of = self.teacher.task.logits_of(outputs.teacher)

        def score(logits: jax.Array, theirs: jax.Array, weights: Any) -> tuple[Weighted, None]:
            soft = losses.distillation(logits, logits_of(theirs), self.temperature)
            return weigh(soft, weights), None

        beside = (theirs, self.weights(batch, True))
        return self.student.in_parts(score, outputs.student, beside)[0]

    def _error(self, x: jax.Array, theirs: jax.Array, batch: Batch) -> Weighted:
        """The squared error of features (B, ..., D) as the loss weighs; without padding."""
        error = losses.squared_error(x, theirs).mean(-1)
        weights = self.weights(batch, True)
        if weights is not None and error.shape == weights.shape:
            return weigh(error, weights)
        texts, real = self.inputs(batch), jnp.ones(error.shape)
        if isinstance(texts, Sequences) and error.shape == texts.tokens_BxT.shape:
            real = texts.real_BxT.astype(jnp.float32)
        rest = tuple(range(1, error.ndim))
        error_B = jnp.where(real > 0, error, 0).sum(rest) / jnp.maximum(real.sum(rest), 1)
        return weigh(error_B, weights)


def _classes(task: Task) -> int | None:
    """How many classes, or tokens, a task's model tells apart; None where it does not say."""
    return task.outputs if isinstance(task, Labelled) else getattr(task.model, "vocabulary", None)


def _own(params: Params, model_state: ModelState) -> tuple[Params, ModelState]:
    """What the student's model has, without what it is taught by."""
    own = {name: tree for name, tree in params.items() if name != PROJECTIONS}
    constants = {k: x for k, x in model_state[CONSTANTS].items() if k != TEACHER}
    state = {name: tree for name, tree in model_state.items() if name != CONSTANTS}
    return own, {**state, CONSTANTS: constants} if constants else state


def _layer(intermediates: Mapping[str, Any], match: Match, whose: str) -> jax.Array:
    """Returns what a layer gave in its one call, or the first of several."""
    found, path = intermediates, getattr(match, whose)
    for name in path.split("/"):
        found = found.get(name, {}) if isinstance(found, Mapping) else {}
    given = found.get("__call__", ()) if isinstance(found, Mapping) else found
    if not given or not isinstance(given[0], jax.Array):
        known = sorted(_layers(intermediates))
        raise ConfigError(
            f"Match.{whose}: the {whose} has no layer {path!r} that gives an array; it has "
            f"{listed(known) or 'none'}.{nearest(path, known)}"
        )
    return given[0]


def _layers(tree: Mapping[str, Any], before: str = "") -> set[str]:
    """Returns the paths of all layers that gave an array."""
    found = set()
    for name, inner in tree.items():
        if isinstance(inner, Mapping):
            found |= _layers(inner, f"{before}{name}/")
        elif isinstance(inner[0], jax.Array):
            found.add((before if name == "__call__" else before + name).rstrip("/"))
    return found - {""}


def _sizes(match: Match, pair: tuple[Any, Any]) -> tuple[int, int]:
    """Returns how many features both have; raises ConfigError where the rest differs."""
    own, theirs = (x.shape for x in pair)
    if own[:-1] != theirs[:-1]:
        raise ConfigError(
            f"Distillation.features: {match.student!r} of the student gives {own} and "
            f"{match.teacher!r} of the teacher {theirs}; they may differ in the last size alone."
        )
    return own[-1], theirs[-1]
