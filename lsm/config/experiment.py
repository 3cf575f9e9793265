"""The vocabulary of an experiment: frozen dataclasses that hold the objects themselves.

A config is a Python file whose `get_config(arg=None)` returns an `Experiment`. `lsm.config.flags`
loads it, applies `--config.a.b=value`, and checks every field against its type.
"""

import dataclasses
import re
from typing import Literal

from lsm.checks import LARGEST, require, require_duration, require_pattern, require_regex
from lsm.config.callbacks import Callback
from lsm.config.computed import Computed
from lsm.data import Data
from lsm.durations import LONGEST, Duration, Horizon
from lsm.errors import ConfigError
from lsm.evaluate import Metric
from lsm.interop import Names
from lsm.mesh import Mesh
from lsm.optim import Optimizer, as_optimizer
from lsm.tasks import MeanGradient, Task
from lsm.writers import Console, Jsonl, TensorBoard, WriterConfig

LENGTHS = ("steps", "epochs", "examples")
_MOST_STEPS = 1024  # of one dispatch: their batches are on the devices at the same time
COSMETIC = {"alters_run": False}
"""Metadata of fields that may change between a run and its continuation."""


def _length(unit: str):
    others = tuple(name for name in LENGTHS if name != unit)
    return dataclasses.field(default=None, metadata={"replaces": others})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """How long and in what portions; give exactly one of steps, epochs and examples.

    Attributes:
      steps: length of the run in optimiser steps.
      epochs: length of the run in passes over the training data; may be a fraction.
      examples: length of the run in examples.
      batch_size: examples in one step, over all devices and micro-batches.
      seed: of the parameters, the order of the data, augmentation and dropout.
      accumulation: micro-batches that one step's gradient is summed over.
      params: dtype that parameters are held in. With "bfloat16" the optimiser keeps a float32
        master copy, and everything else reads, gathers and differentiates half the bytes.
      gradient: how the gradient is made of the examples of a batch.
      skip_nonfinite: skip an update with a NaN or infinity in the loss or the new state, instead of
        stopping.
      log_every: time between rows of training metrics.
      steps_per_execution: steps in one dispatch, at most; an interruption waits for its end. They
        compute what single steps do, to the bit on a CPU. "auto" takes several where a step is so
        short that the host would hold it up.
    """

    steps: int | None = _length("steps")
    epochs: int | float | None = _length("epochs")
    examples: int | None = _length("examples")
    batch_size: int = 128
    seed: int = 0
    accumulation: int = 1
    params: Literal["float32", "bfloat16"] = "float32"
    gradient: MeanGradient = MeanGradient()
    skip_nonfinite: bool = False
    log_every: Duration = dataclasses.field(default=100, metadata=COSMETIC)
    steps_per_execution: int | Literal["auto"] = dataclasses.field(
        default="auto", metadata=COSMETIC
    )

    def __post_init__(self):
        given = {name: getattr(self, name) for name in LENGTHS if getattr(self, name) is not None}
        if len(given) != 1:
            shown = ", ".join(f"{k}={v}" for k, v in given.items()) or "none"
            raise ConfigError(f"train: one of steps, epochs, examples is needed; {shown} given.")
        require(self, steps=f"(0, {LONGEST}]", epochs="(0, inf)", examples="(0, inf)")
        require(self, batch_size=f"(0, {LARGEST}]", accumulation="(0, inf)")
        require(self, seed="[0, 4294967296)")
        require_duration(self, "log_every", self.log_every)
        if self.steps_per_execution != "auto":
            require(self, steps_per_execution=f"[1, {_MOST_STEPS}]")
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"train.accumulation: {self.accumulation} does not divide "
                f"train.batch_size={self.batch_size}."
            )

    def horizon(self, examples_per_epoch: int, examples_per_step: float | None = None) -> Horizon:
        """Returns the run's length in steps, and what other durations are measured against.

        Args:
          examples_per_epoch: examples of the training split.
          examples_per_step: examples in a batch on average; None is `batch_size`.
        """
        per_step = examples_per_step or self.batch_size
        if self.steps is not None:
            steps = self.steps
        elif self.epochs is not None:
            steps = round(self.epochs * examples_per_epoch / per_step)
        else:
            steps = round(self.examples / per_step)
        return Horizon(max(steps, 1), per_step, examples_per_epoch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Stop when the monitored validation metric no longer improves.

    Attributes:
      patience: evaluations without improvement before the run stops.
      min_delta: smallest change that counts as an improvement.
      restore_best: end with the parameters of the best evaluation instead of the last step's.
    """

    patience: int = 3
    min_delta: float = 0.0
    restore_best: bool = True

    def __post_init__(self):
        require(self, patience="[1, inf)", min_delta="[0, inf)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When to evaluate, and which metric says that a model is better.

    While training the validation split is evaluated, or the test split where there is none
    (then for monitoring alone: nothing is chosen by it). The test split is evaluated at the end.

    Attributes:
      every: time between evaluations.
      batch_size: examples in one evaluation batch; None takes the training batch size.
      monitor: validation metric that defines the best checkpoint.
      better: whether a lower or a higher value of it is better; None goes by its name: lower with
        "loss", "error" or "perplexity" in it, else higher.
      metrics: figures that are not means, computed on the host from predictions of all examples.
      final: more of them, whose predictions are dear, such as texts that are searched for: at the
        end of a run, and by `--mode=eval`.
      early_stopping: None trains to the end.
    """

    every: Duration = "1 epoch"
    batch_size: int | None = dataclasses.field(default=None, metadata=COSMETIC)
    monitor: str = "loss"
    better: Literal["lower", "higher"] | None = None
    metrics: tuple[Metric, ...] = ()
    final: tuple[Metric, ...] = ()
    early_stopping: EarlyStopping | None = None

    def __post_init__(self):
        require_duration(self, "every", self.every)
        require(self, batch_size=f"[1, {LARGEST}]")

    @property
    def sign(self) -> int:
        """-1 where a lower value of the monitored metric is better, else 1."""
        lower = any(name in self.monitor for name in ("loss", "perplexity", "error"))
        return -1 if self.better == "lower" or (self.better is None and lower) else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When to save. The last step, an interruption and each new best are saved in any case.

    Attributes:
      every: time between checkpoints; 0 for none in between.
      keep: how many of the latest are kept, beside the best.
    """

    every: Duration = dataclasses.field(default="1 epoch", metadata=COSMETIC)
    keep: int = dataclasses.field(default=2, metadata=COSMETIC)

    def __post_init__(self):
        require_duration(self, "every", self.every, zero=True)
        require(self, keep="[1, inf)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run's first parameters come from; once it has a checkpoint, from that.

    Paths here are "params/Dense_0/kernel" for parameters, and begin with the collection for model
    state: "batch_stats/BatchNorm_0/mean", "constants/...". Patterns are regular expressions,
    searched for in a path. Optimiser state begins anew.

    Attributes:
      path: workdir of another run (its best checkpoint, else its last; averaged parameters where
        there are any), one of its checkpoints (`WORKDIR/checkpoints/300`), or safetensors: a file,
        or a folder with one or with an index; or a GGUF file.
      take: pattern of the arrays there that are taken; each must find its place here, but for those
        whose place is fresh.
      rename: pairs (pattern, replacement) of `re.sub`, one after the other: from a path here to its
        name there.
      fresh: pattern of arrays here that are drawn as without a start, such as a new head; None is
        none of them.
      masks: what a pruned run's weights are 0 in, such as its workdir, where `path` is that of the
        same run's early checkpoint (rewinding, arXiv:1903.01611, arXiv:2003.02389): so are those
        here that the optimiser prunes, from the first step on. None prunes nothing yet.
      names: how the arrays of safetensors from elsewhere are called and laid out, such as
        `lsm.interop.Torch()` or `lsm.interop.open_model(path).names`; None is as here. Paths that
        it is asked for are renamed before.
    """

    path: str
    take: str = ".*"
    rename: tuple[tuple[str, str], ...] = ()
    fresh: str | None = None
    names: Names | None = None
    masks: str | None = None

    def __post_init__(self):
        require_pattern(self, "take", *(["fresh"] if self.fresh is not None else []))
        if "" in (self.take, self.fresh):
            raise ConfigError("Start: '' given as a pattern, which matches everything; say '.*'.")
        for pair in self.rename:
            _check_rename(pair)


def _check_rename(pair: object) -> None:
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise ConfigError(
            f"Start.rename: {pair!r} given; pairs are needed, as in "
            "rename=(('^constants/base/', 'params/'),)."
        )
    require_regex("Start.rename", pair[0])
    try:
        re.sub(pair[0], pair[1], "")
    except (re.error, IndexError, TypeError) as error:
        raise ConfigError(f"Start.rename: {pair!r} is no replacement: {error}.") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run, as a value.

    Attributes:
      name: of the run, for logs and trackers.
      task: what is learnt: a model, a loss, metrics.
      data: what it is learnt from.
      optimizer: how: an optimiser with its schedule; a transform of Optax is taken for
        `lsm.optim.Raw` of it.
      train: how long.
      start: where the first parameters come from: of another run or a file, or computed from the
        training data; None draws them all.
      evaluation: how often it is measured.
      checkpoint: how often it is saved.
      mesh: how it is spread over devices.
      writers: where the metrics go.
      callbacks: functions that the loop calls after a row, an evaluation, a checkpoint.
    """

    name: str = dataclasses.field(metadata=COSMETIC)
    task: Task
    data: Data
    optimizer: Optimizer
    train: Train
    start: Start | Computed | None = None
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    mesh: Mesh = dataclasses.field(default=Mesh(), metadata=COSMETIC)
    writers: tuple[WriterConfig, ...] = dataclasses.field(
        default=(Console(), Jsonl(), TensorBoard()), metadata=COSMETIC
    )
    callbacks: tuple[Callback, ...] = dataclasses.field(
        default=(), metadata=COSMETIC | {"rebuilt": False}
    )

    def __post_init__(self):
        object.__setattr__(self, "optimizer", as_optimizer(self.optimizer))
        if self.evaluation.early_stopping and not self.data.validation:
            raise ConfigError(
                "evaluation.early_stopping: data.validation is None; stopping on the test split "
                "would be fitting to it. Name a validation split, such as 'train[90%:]'."
            )

    def horizon(self, examples_per_epoch: int) -> Horizon:
        """Returns the run's length; see `Train.horizon`."""
        per_step = self.data.sampling.mean(self.train.batch_size)
        return self.train.horizon(examples_per_epoch, per_step)
