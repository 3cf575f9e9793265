"""What a run stands on before its first step: data opened, checked against the task, compiled."""

import dataclasses
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lsm import processes
from lsm.config import Experiment, schema
from lsm.cpu.libtpu import ignore_without_tpu
from lsm.data import (
    ArrayDataset,
    Columns,
    Dataset,
    EvalBatches,
    Poisson,
    Shuffled,
    TrainBatches,
    cache,
    doubts,
)
from lsm.data.inputs import Inputs
from lsm.data.transforms import IMAGE, changed
from lsm.durations import Horizon
from lsm.errors import ConfigError, DataError, LsmError, listed, nearest
from lsm.evaluate import Metric, columns, init, names, update
from lsm.mesh import local_rows
from lsm.metrics import Weighted
from lsm.tasks import Labelled, column
from lsm.train.program import Program, build, make_predict
from lsm.train.splits import abstract_means, evaluation_batches, reads_pixels

_log = logging.getLogger("lsm.train")


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The opened parts of an experiment.

    Attributes:
      experiment: what they are of.
      horizon: its length in steps.
      train: training batches by step; of each, the rows of this process.
      evaluation: evaluation batches by split, of the splits that the experiment names; likewise.
      program: the compiled pieces.
      metrics: those of every evaluation, told the names of the classes.
      final: those of the last one, likewise.
    """

    experiment: Experiment
    horizon: Horizon
    train: TrainBatches
    evaluation: dict[str, EvalBatches]
    program: Program
    metrics: tuple[Metric, ...]
    final: tuple[Metric, ...]

    @classmethod
    def of(cls, experiment: Experiment, data_dir: os.PathLike | str | None) -> "Trainer":
        """Opens the data and builds the program.

        Every check but that of all examples is made here, before anything is written or computed.

        Raises:
          DataError: a dataset or split is not there, or is not what the task needs.
          MeshError: the mesh does not fit the devices, the batch or the parameters.
          ConfigError: a field is not of its type, or the optimiser does not fit the model.
        """
        schema.check(experiment)
        data = experiment.data.settled(data_dir)
        experiment = dataclasses.replace(experiment, data=data)
        batches = train_batches(experiment, data_dir)
        horizon = experiment.horizon(len(batches.dataset))
        sample = _sample(batches)
        _check_vocabulary(experiment, batches.dataset.vocabulary_size)
        _check_texts(batches.dataset, sample)
        experiment.task.check(sample)
        classes = Inputs.of(batches.dataset).called(experiment.task.plain)
        _check_outputs(experiment, classes)
        _check_input(experiment, batches.dataset)
        _check_weights(sample)
        _check_shapes({name: jax.ShapeDtypeStruct((), x.dtype) for name, x in sample.items()})
        program = build(experiment, horizon, sample)
        state = program.abstract_state.model_state
        if isinstance(data.sampling, Poisson) and "batch_stats" in state:
            raise ConfigError(
                "data.sampling: Poisson given, whose batches are filled up with copies that do not "
                "count, and batch norm would count them; a model without it is needed."
            )
        evaluation = evaluation_batches(experiment, program, sample, batches.dataset, data_dir)
        metrics, final = _told(experiment, classes)
        _check_monitor(experiment, metrics, final, program)
        rows = local_rows(program.batch, batches.batch_size)
        batches = dataclasses.replace(batches, rows=rows)
        return cls(experiment, horizon, batches, evaluation, program, metrics, final)

    def check_examples(self, split: str) -> None:
        """Checks all examples of "train", "validation" or "test" that are in memory.

        Else a rare label is found in the middle of a run, by its loss, which is NaN. A split that
        is decoded once, into memory, is decoded now.

        Raises:
          DataError: an example is not what the task needs, or cannot be read.
        """
        train = split == "train"
        batches = self.train if train else self.evaluation[split]
        dataset = batches.dataset
        instead = _augmented(batches) if train else _changed(batches)
        if "weight" in instead:  # then which labels count is only known of a batch
            return
        for part in dataset.held():
            rows = len(next(iter(part.values())))
            made = {name: np.resize(x, (rows, *x.shape[1:])) for name, x in instead.items()}
            self.experiment.task.check(part | made)
            _check_weights(part)

    def say_doubts(self) -> None:
        """Warns of what examples in memory are that is seldom meant: NaN, classes not learnt."""
        train = self.train.dataset
        others = {split: batches.dataset for split, batches in self.evaluation.items()}
        for split, dataset in {"train": train, **others}.items():
            for name, line in doubts.of_values(dataset):
                if split != "train" or name not in _augmented(self.train):
                    _log.warning("data.%s: %s.", split, line)
        label = getattr(self.experiment.task.plain, "label", None)
        numbered = [name for name in train.spec if name in train.names or name == label]
        for split, dataset in others.items():
            for line in doubts.of_classes(numbered, train, dataset):
                _log.warning("data.%s: %s.", split, line)

    @property
    def monitored(self) -> str | None:
        """The split evaluated while training: validation, else test, else none."""
        return next(iter(self.evaluation), None)

    @property
    def data(self) -> dict[str, Any]:
        """What the data is, by "train", "validation" and "test"; see `Dataset.identity`."""
        batches = {"train": self.train, **self.evaluation}
        return {split: of.dataset.identity for split, of in batches.items()}


def train_batches(experiment: Experiment, data_dir: os.PathLike | str | None) -> TrainBatches:
    """Returns the training batches, of all rows: what is read here, a mesh would say.

    Raises:
      DataError: the data is not there.
      ConfigError: a batch is larger than the data.
    """
    data, train = experiment.data, experiment.train
    dataset = data.source.open(data.train, data_dir)
    if train.batch_size > len(dataset):
        raise ConfigError(
            f"train.batch_size: {train.batch_size} given; {data.train!r} has {len(dataset)} "
            "examples, and a batch can have no more."
        )
    return TrainBatches(dataset, train.batch_size, train.seed, data.augment, sampling=data.sampling)


def _sample(batches: TrainBatches) -> Columns:
    """Returns the first batch; of several processes, each reads the same part of it."""
    # The same part, so that all find the same fault; no more than a process reads of any batch.
    share = -(-batches.batch_size // jax.process_count())
    dataset = batches.dataset.by_example()
    return dataclasses.replace(batches, dataset=dataset, rows=np.arange(share)).batch_at(0)


def _check_texts(dataset: Dataset, sample: Columns) -> None:
    """Raises DataError for a column of texts, which no device holds: one word makes it such."""
    for name, values in sample.items():
        known = values.dtype == object and name in dataset.spec
        if known and isinstance(values[0], str) and (told := doubts.text(dataset, name)):
            raise DataError(
                f"data: {told}; mend it, leave the column out of data.source.columns, or, where "
                "its values are classes, name it in data.source.labels."
            )


def _augmented(batches: TrainBatches) -> Columns:
    """Returns the columns that augmentations change or add, of a sample that they made."""
    if not batches.augment:
        return {}
    sample = _sample(batches)
    raw = made = _sample(dataclasses.replace(batches, augment=()))
    for transform in batches.augment:
        made = transform(made, np.random.default_rng(0))
    # By identity: a label that is changed may be too rare for the sample.
    return {name: sample[name] for name in made if made[name] is not raw.get(name)}


def _changed(batches: EvalBatches) -> Columns:
    """Returns the columns that `Data.evaluate` changes, of one example."""
    raw = batches.dataset.by_example().take(np.arange(1)) if batches.change else {}
    return {name: x for name, x in changed(raw, batches.change).items() if x is not raw[name]}


def abstract_batch(
    experiment: Experiment, data_dir: os.PathLike | str | None = None
) -> tuple[dict[str, jax.ShapeDtypeStruct], Horizon]:
    """Returns the shapes of a training batch, and the run's length.

    The data itself is opened only where the length is in epochs, where examples are not simply
    shuffled, or where the source knows its shapes no other way. Pictures of different sizes that
    augmentations bring to one are taken for RGB where the data is not there. Texts in buckets are
    as wide as the widest.

    Raises:
      DataError: the data is needed and is not there, or has no one shape.
    """
    data, train = experiment.data, experiment.train
    known: Mapping = {}
    if train.epochs is None and data.sampling == Shuffled():
        known = data.source.spec(data.train, data_dir)
    if known:
        # One example, of zeros, for augmentations to change the shapes of.
        zeros = {name: np.zeros((1, *one.shape), one.dtype) for name, one in known.items()}
        if IMAGE in known and known[IMAGE].dtype == object and data.augment:
            zeros[IMAGE][0] = _some_picture(experiment, data_dir)
        opened: Dataset = ArrayDataset(zeros)
        examples = train.examples or train.steps * train.batch_size  # an epoch: not known
    else:
        opened = data.source.open(data.train, data_dir)
        examples = len(opened)
    sample = TrainBatches(
        opened, train.batch_size, train.seed, data.augment, np.arange(1), data.sampling
    ).batch_at(0)
    spec = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in sample.items()}
    if opened.encoder is not None and len(opened.encoder.buckets) > 1:  # the first's may be narrow
        spec |= {name: one for name, one in opened.spec.items() if name in spec}
    _check_shapes(spec)
    experiment.task.check({name: np.zeros((1, *x.shape), x.dtype) for name, x in spec.items()})
    shapes = {
        name: jax.ShapeDtypeStruct((train.batch_size, *one.shape), one.dtype)
        for name, one in spec.items()
    }
    return shapes, experiment.horizon(examples)


def _some_picture(experiment: Experiment, data_dir: os.PathLike | str | None) -> np.ndarray:
    """Returns a picture of a source whose pictures differ in size; of one that is not here, RGB."""
    data = experiment.data
    try:
        dataset = data.source.open(data.train, data_dir).by_example()
    except DataError:
        return np.zeros((256, 256, 3), np.uint8)
    return dataset.take(np.arange(1))[IMAGE][0]


def _check_shapes(spec: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raises DataError for a column that no device holds: texts, or arrays of different shapes."""
    for name, one in spec.items():
        if one.dtype == object:
            raise DataError(
                f"data: column {name!r} has no one shape; set data.source.size if these are "
                "pictures, or leave it out of data.source.columns."
            )


def prepare_jax() -> None:
    """Sees to JAX before a device is touched: no libtpu without a TPU, and a cache of programs.

    The cache is the persistent one, where the user has not placed it elsewhere.

    XLA cannot write every CPU program to it (see `lsm.cpu.compiler_options`); JAX would warn of
    each, at every start.
    """
    ignore_without_tpu()
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache.root() / "compiled"))


def _check_weights(batch: Mapping[str, np.ndarray]) -> None:
    if (batch.get("weight", np.zeros(1)) < 0).any():
        raise DataError("data: column 'weight' weighs the examples, and one is below 0.")


def _check_vocabulary(experiment: Experiment, ids: int | None) -> None:
    """Raises DataError where tokens may have ids that the model does not know.

    The check of a batch does not see the rare ones, such as the end of a text.
    """
    known = getattr(experiment.task.model, "vocabulary", None)
    if None not in (ids, known) and ids > known:
        raise DataError(
            f"task.model.vocabulary: {known:,} given; allowed: {ids:,} or more, the number of ids "
            f"that {experiment.data.source} has."
        )


def _check_outputs(experiment: Experiment, classes: Sequence[str] | None) -> None:
    """Warns where a classifier's outputs are not as many as the classes: both have defaults.

    Raises:
      DataError: there is one class.
    """
    task, source = experiment.task.plain, experiment.data.source
    if not (isinstance(task, Labelled) and classes):
        return
    if len(classes) == 1:
        raise DataError(f"data: {source} has one class, {classes[0]!r}; two or more are needed.")
    if task.outputs not in (None, len(classes)) and processes.is_first():
        told = "task.model.outputs: %d, and %s has %d classes."
        _log.warning(told, task.model.outputs, source, len(classes))


def _check_input(experiment: Experiment, dataset: Dataset) -> None:
    """Raises DataError where a task would read what is not meant for it."""
    task = experiment.task.plain
    for field in dataclasses.fields(task):
        given = getattr(task, field.name)
        several = given if isinstance(given, tuple) else (given,)
        if any(isinstance(one, str) and one == "weight" for one in several):
            raise DataError(
                f"task.{field.name}: column 'weight' weighs the examples, and is no other; call "
                "it something else, as data.source.columns can of files."
            )
    if reads_pixels(task) and task.input in dataset.names:
        raise DataError(
            f"task.input: column {task.input!r} holds numbers of names, such as "
            f"{dataset.names[task.input][0]!r}, which would be divided by 255 as pixels are; join "
            "it with others, or read it by a model of your own and lsm.tasks.Function."
        )


def _told(
    experiment: Experiment, classes: Sequence[str] | None
) -> tuple[tuple[Metric, ...], tuple[Metric, ...]]:
    """Returns the metrics, and the final ones, told the classes.

    An output without a name has a number; where a model has no such outputs, the names come as they
    are: those of tokens can make a text.
    """
    task = experiment.task.plain
    outputs = getattr(task if isinstance(task, Labelled) else task.model, "outputs", None)
    names = classes or ()
    if len(names) < (outputs or 0):
        names = [*names, *map(str, range(len(names), outputs))]
    evaluation = experiment.evaluation
    often, final = ([m.told(names) for m in of] for of in (evaluation.metrics, evaluation.final))
    return tuple(often), tuple(final)


def _check_monitor(
    experiment: Experiment,
    metrics: tuple[Metric, ...],
    final: tuple[Metric, ...],
    program: Program,
) -> None:
    """Raises ConfigError where the monitored metric is not one of the task's."""
    batch, task = program.abstract_batch, experiment.task
    means = abstract_means(experiment, program, batch)
    figures = task.summary({name: Weighted(1.0, 1.0) for name in means})
    for name in names(metrics + final):
        if name in figures:
            raise ConfigError(f"evaluation.metrics: {name!r} is a metric of the task's own.")
    for field, several in {"metrics": metrics, "final": final}.items():
        for name in columns(several):
            column(batch, name, f"evaluation.{field}")
    if metrics or final:
        _let_see_nothing(experiment, metrics + final, program)
    figures |= dict.fromkeys(names(metrics), 1.0)
    monitor = experiment.evaluation.monitor
    if monitor not in figures:
        raise ConfigError(
            f"evaluation.monitor: no metric {monitor!r}; this task has {listed(figures)}."
            + nearest(monitor, figures)
        )


def _let_see_nothing(experiment: Experiment, metrics: tuple[Metric, ...], program: Program) -> None:
    """Hands the metrics a batch of no example: what they miss in it is told now."""
    state, batch = program.abstract_state, program.abstract_batch
    predict = make_predict(experiment.task, experiment.train.seed)
    seen = jax.eval_shape(predict, state.params, state.model_state, batch, 0, state.step), batch
    empty = [{name: np.zeros((0, *x.shape[1:]), x.dtype) for name, x in of.items()} for of in seen]
    try:
        update(metrics, init(metrics), *empty)
    except LsmError:
        raise
    except Exception as error:  # somebody's own, which may need one
        _log.debug("evaluation.metrics, of no example: %s", error)
