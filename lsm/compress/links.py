"""The links of a chain: by training, and by what makes a run of another in one go."""

import dataclasses
import itertools
import os
import pathlib
import shutil

import flax.linen as nn

from lsm.checks import require, require_pattern
from lsm.compress.quantise import quantise
from lsm.compress.recipe import Derived, Link
from lsm.compress.shorten import shorten
from lsm.compress.structured import shrink
from lsm.config import Computed, Experiment, Start, Train, schema
from lsm.config.origin import CONFIG, Origin, as_now, experiment_of, saved_config
from lsm.data import Data
from lsm.errors import ConfigError
from lsm.models.quantised import Bits
from lsm.models.whole_layers import Activations
from lsm.optim import FixedMasks, Optimizer, as_optimizer
from lsm.tasks import Distillation, Match, Task, Teacher
from lsm.train.derived import write_run
from lsm.train.fit import fit
from lsm.train.trained import load


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tune(Link):
    """Trains a model on, from its weights: what it has lost is learnt again.

    All else is as in the source's experiment.

    Attributes:
      optimizer: how; one that prunes makes it the pruning of a chain. What the source has pruned is
        trained again, unless it prunes too: with `lsm.optim.FixedMasks` the same stays 0.
      train: how long.
    """

    optimizer: Optimizer
    train: Train

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "optimizer", as_optimizer(self.optimizer))

    def run(
        self, source: pathlib.Path, out: pathlib.Path, first: pathlib.Path, data_dir: str | None
    ) -> None:
        """See `Link.run`."""
        _fitted(self._experiment(source, self._from(source)), out, data_dir)

    def _from(self, source: pathlib.Path) -> Start:
        """The source's weights, and where the optimiser asks for its zeros, those."""
        fixed = any(isinstance(of, FixedMasks) for of in self.optimizer.prunings)
        return Start(path=str(source), masks=str(source) if fixed else None)

    def _experiment(self, source: pathlib.Path, start: Start | Computed | None) -> Experiment:
        return dataclasses.replace(
            experiment_of(source),
            optimizer=self.optimizer,
            train=self.train,
            start=start,
            callbacks=(),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distil(Tune):
    """A student of what the chain began with; the result is the plain student.

    Attributes:
      model: the student; None is the source's model, from its weights.
      start: where another model's first parameters come from; None draws them.
      temperature: as of `lsm.tasks.Distillation`.
      share: likewise.
      features: likewise.
      data: what is learnt from, and watched by, instead of the source's; with `share=1` its labels
        may be any that the task allows. The last step counts then: what is best there is not what
        is best of the source's data, which the result is of.
    """

    model: nn.Module | None = None
    start: Start | Computed | None = None
    temperature: float = 4.0
    share: float = 0.5
    features: tuple[Match, ...] = ()
    data: Data | None = None

    def __post_init__(self):
        super().__post_init__()
        require(self, temperature="(0, inf)", share="[0, 1]")
        if self.start is not None and self.model is None:
            raise ConfigError(
                "Distil.start: is of another model, and none is given; the source's begins with "
                "the source's weights."
            )

    def run(
        self, source: pathlib.Path, out: pathlib.Path, first: pathlib.Path, data_dir: str | None
    ) -> None:
        """See `Link.run`."""
        if (out / CONFIG).exists():  # which is written last
            return
        start = self.start if self.model else self._from(source)
        found = self._experiment(source, start)
        taught = dataclasses.replace(found, task=self._task(found.task.plain, first))
        if self.data is not None:
            last = dataclasses.replace(found.evaluation, early_stopping=None)
            taught = dataclasses.replace(taught, data=self.data, evaluation=last)
        _fitted(taught, out / "training", data_dir)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        # What was best of other data may have been so by labels that mean nothing.
        step = "best" if self.data is None else "last"
        student = load(out / "training", experiment=taught, step=step)
        plain = dataclasses.replace(found, task=student.experiment.task, start=None)
        beside = out / "training" if self.data is None else source  # names, tokenizer
        write_run(beside, out, plain, student.step, student.params, student.model_state)

    def _task(self, task: Task, first: pathlib.Path) -> Distillation:
        if self.model is not None:
            task = dataclasses.replace(task, model=self.model)
        return Distillation(
            student=task,
            teacher=Teacher(task=experiment_of(first).task.plain, path=str(first)),
            temperature=self.temperature,
            share=self.share,
            features=self.features,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shorten(Derived):
    """Some of the blocks of a Transformer or a ResNet alone: see `lsm.compress.shorten`.

    Attributes:
      layers: numbers of the blocks that stay, from 0; a ResNet's through all stages.
    """

    layers: tuple[int, ...]

    def __post_init__(self):
        super().__post_init__()
        if not self.layers or any(b <= a for a, b in itertools.pairwise((-1, *self.layers))):
            raise ConfigError(f"Shorten.layers: {self.layers} given; rising numbers are needed.")

    def make(self, source: pathlib.Path, out: pathlib.Path, data_dir: str | None) -> None:
        """See `Derived.make`."""
        shorten(source, out, layers=self.layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shrink(Derived):
    """Whole filters, heads and hidden units go: see `lsm.compress.shrink`.

    Attributes:
      filters: share that stays.
      heads: likewise.
      hidden: likewise.
    """

    filters: float = 1.0
    heads: float = 1.0
    hidden: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require(self, filters="(0, 1]", heads="(0, 1]", hidden="(0, 1]")
        if self.filters == self.heads == self.hidden == 1:
            raise ConfigError("Shrink: nothing would go; give filters, heads or hidden, below 1.")

    def make(self, source: pathlib.Path, out: pathlib.Path, data_dir: str | None) -> None:
        """See `Derived.make`."""
        shrink(source, out, filters=self.filters, heads=self.heads, hidden=self.hidden)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantise(Derived):
    """Kernels become whole numbers: see `lsm.compress.quantise`.

    Attributes:
      weights: "int8" or "int4"; None is what the source was trained for, else "int8".
      activations: "dynamic" or "calibrated"; None likewise, else floats.
      kept: pattern of what stays float; None likewise, else none.
    """

    weights: Bits | None = None
    activations: Activations | None = None
    kept: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.kept is not None:
            require_pattern(self, "kept")

    def make(self, source: pathlib.Path, out: pathlib.Path, data_dir: str | None) -> None:
        """See `Derived.make`."""
        how = {"weights": self.weights, "activations": self.activations, "kept": self.kept}
        quantise(source, out, **how, data_dir=data_dir)


def _fitted(experiment: Experiment, out: pathlib.Path, data_dir: str | None) -> None:
    """Trains to the end, or raises KeyboardInterrupt where it was stopped, and has saved."""
    origin = Origin(directory=os.getcwd())
    moved = _moved(experiment, out)
    result = fit(experiment, out, data_dir=data_dir, origin=origin, allow_config_change=moved)
    if result.stopped == "interrupted":
        raise KeyboardInterrupt


def _moved(experiment: Experiment, out: pathlib.Path) -> bool:
    """Whether this training has begun where the chain's folder was before: it starts elsewhere."""
    if not (out / CONFIG).exists():
        return False
    saved, now = as_now(saved_config(out)), schema.to_json(experiment)
    changes = schema.differences(saved, now, schema.free_fields(experiment))
    return bool(changes) and all(
        one.startswith(("start.path: ", "start.masks: ")) for one in changes
    )
