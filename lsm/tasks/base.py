"""What a task is to the trainer: initialise, loss, evaluate, predict. Pure functions of arrays."""

import abc
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lsm.errors import ConfigError, DataError, calling, listed
from lsm.metrics import Weighted, weigh
from lsm.tasks.columns import Batch, asking, check_numeric
from lsm.tasks.keywords import takes

Params = Any
"""Tree of trainable arrays: Linen's "params" collection."""

ModelState = Mapping[str, Any]
"""Every other Linen collection by name, such as batch norm's running means; {} for most models."""

CONSTANTS = "constants"
"""The collection of `ModelState` that nothing changes: a frozen base, a teacher. It is not trained,
has no optimiser state and no master copy, and all checkpoints of a run share one copy of it."""

TEACHER, PROJECTIONS = "teacher", "distillation_projections"
"""In `CONSTANTS`, and in the parameters, what a student learns by and its model has not: the one is
read of another run at every start and never saved, the other is not read again by anything else."""

INTERMEDIATES = "intermediates"
"""The collection of what layers give: asked for by its name in the `ModelState` of a call."""

LOSSES = "losses"
"""The collection that a model sows terms of its loss into; see `Task`."""

Rngs = Mapping[str, jax.Array]
"""Random keys by the name of their stream; see `lsm.rng.streams`."""


class LossOutput(NamedTuple):
    """What a loss returns beside its gradient: metrics hold "loss", and what the model changed."""

    metrics: dict[str, Weighted]
    model_state: ModelState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A Linen model, the columns that it reads, a loss and metrics.

    What a model sows into the collection "losses", by `self.sow("losses", NAME, value)` with a
    scalar or one value an example (B,), is minimised with the loss: its mean is added to the mean
    loss. It is reported as NAME and not part of the metric "loss".

    Attributes:
      model: Linen module called as `model.apply(variables, inputs, train=train)`, without `train`
        where it takes none.
    """

    model: nn.Module
    unit: ClassVar[str] = "examples"
    """What the loss is a mean over, in the plural; its speed is logged as `{unit}_per_sec`."""

    @property
    def plain(self) -> "Task":
        """The task of the model in use: this one, or where a student is taught, the student's."""
        return self

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the random streams that `forward` draws from: `model.streams`, or "dropout"."""
        return getattr(self.model, "streams", ("dropout",))

    @abc.abstractmethod
    def inputs(self, batch: Batch) -> Any:
        """Returns the model's input from a batch: an array, or a tree of arrays."""

    @abc.abstractmethod
    def metrics(
        self, outputs: Any, batch: Batch, train: bool, step: jax.Array
    ) -> dict[str, Weighted]:
        """Returns named (sum, weight) pairs; "loss" is the one that training minimises.

        Args:
          outputs: what `forward` returned.
          batch: its batch.
          train: whether this is training, or evaluation.
          step: int32 scalar, updates made so far: for terms that warm up.
        """

    def weights(self, batch: Batch, train: bool) -> jax.Array | np.ndarray | None:
        """Returns the weights (B, ...) of what the loss is a mean over; None weighs all alike."""
        del train
        return batch.get("weight")

    def augment(self, batch: Batch, rngs: Rngs) -> Batch:
        """Returns a training batch as `forward` and `metrics` see it: here, as it comes.

        For changes across the examples of a batch, which is whole here: on the devices, over all
        processes (of several micro-batches, each by itself). Rows stay as many as they are.
        """
        del rngs
        return batch

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, ModelState]:
        """Returns float32 parameters and the model state for batches shaped like `batch`."""
        inputs = self.inputs(batch)
        with calling("task.model"):
            variables = dict(self.model.init(key, inputs, **self._train(False)))
        # A term of one call, not a state: kept, every later call would append to it.
        variables.pop(LOSSES, None)
        return variables.pop("params", {}), variables

    def forward(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: Rngs,
        train: bool,
        step: jax.Array,
    ) -> tuple[Any, ModelState]:
        """Runs the model on a batch: the one method that does, under all the others.

        Args:
          params: parameters.
          model_state: all other collections.
          batch: columns.
          rngs: keys of the streams named by `streams`.
          train: whether this is training: with dropout, and changing model state.
          step: int32 scalar, updates made so far.

        Returns:
          Outputs (any tree), which `metrics` and `predict` read; and the collections that the
          model changed, with what it sowed into "losses" among them, and "intermediates" where
          they are asked for.
        """
        del step
        return self.apply(params, model_state, self.inputs(batch), rngs, train)

    def apply(
        self,
        params: Params,
        model_state: ModelState,
        inputs: Any,
        rngs: Rngs,
        train: bool,
        method: str | None = None,
        **options: Any,
    ) -> tuple[Any, ModelState]:
        """Calls the model (or a method of it), with such options; returns as `forward` does.

        Raises:
          ConfigError: the model draws from a random stream that `streams` does not name.
        """
        # LOSSES in evaluation as well, to report what was sown.
        beside = (CONSTANTS, INTERMEDIATES)
        changing = [name for name in model_state if name not in beside] if train else []
        try:
            with calling("task.model"):
                return self.model.apply(
                    {"params": params, **model_state},
                    inputs,
                    **options | self._train(train, method),
                    rngs=dict(rngs),
                    mutable=[*changing, LOSSES],
                    capture_intermediates=INTERMEDIATES in model_state,
                    method=method,
                )
        except flax.errors.InvalidRngError as error:
            # Flax tells the name in the text of its message alone.
            (name,) = re.findall(r'PRNG for "(\w+)"', str(error)) or ["?"]
            raise ConfigError(
                f"task.streams: {type(self.model).__name__} draws from the random stream {name!r}; "
                f"there is {listed(rngs) or 'none'}. Name all, as streams = ('dropout', 'noise')."
            ) from error

    def loss(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: Rngs,
        step: jax.Array | int = 0,
    ) -> tuple[jax.Array, LossOutput]:
        """Returns the *sum* of the training loss, for `jax.grad`, and what goes with it."""
        batch = self.augment(batch, rngs)
        outputs, changed = pair(
            "forward", self.forward(params, model_state, batch, rngs, True, step)
        )
        metrics = _weighted(self.metrics(outputs, batch, True, step))
        total, weight = metrics["loss"]
        sown = self._sown(changed, metrics, batch, train=True)
        for term in sown.values():
            # The step divides by `weight`, and the term's mean is what is left then.
            total += term.sum * (weight / jnp.where(term.weight == 0, 1, term.weight))
        changed = {name: value for name, value in changed.items() if name != LOSSES}
        # Else the structure of the state would change from one step to the next.
        known = [name for name in model_state if name != CONSTANTS]
        if unknown := changed.keys() - set(known):
            raise ConfigError(
                f"task.forward: it changes the collection {min(unknown)!r}; `init` made these to "
                f"be changed: {listed(known) or 'none'}."
            )
        return total, LossOutput(metrics | sown, changed)

    def evaluate(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: Rngs = MappingProxyType({}),
        step: jax.Array | int = 0,
    ) -> dict[str, Weighted]:
        """Returns the metrics of one evaluation batch, without dropout or state changes."""
        outputs, changed = pair(
            "forward", self.forward(params, model_state, batch, rngs, False, step)
        )
        metrics = _weighted(self.metrics(outputs, batch, False, step))
        return metrics | self._sown(changed, metrics, batch, train=False)

    def predict(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: Rngs = MappingProxyType({}),
        step: jax.Array | int = 0,
    ) -> dict[str, jax.Array]:
        """Returns named arrays with one row an example, (B, ...): what the model says of each.

        Needs the columns of `inputs` alone, unless a task says more.
        """
        outputs, _ = self._run(params, model_state, batch, rngs, False, step)
        return self.predictions(outputs, batch)

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Returns what `predict` makes of outputs; here themselves, "outputs" without a name."""
        del batch
        return dict(outputs) if isinstance(outputs, Mapping) else {"outputs": outputs}

    def named(
        self, predictions: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns more predictions (B, ...), in the names of classes or tokens: here none.

        Args:
          predictions: what `predict` gave, on the host.
          names: of the classes or tokens, in order; where several columns have names, those of the
            column that the task's field `label` says.
        """
        del predictions, names
        return {}

    def after_update(
        self, params: Params, model_state: ModelState, step: jax.Array
    ) -> tuple[Params, ModelState]:
        """Returns both as they are to be after update `step` (1, 2, ...): here, as they come.

        Runs once an update, however many micro-batches made its gradient: for teachers by moving
        average, target networks, projections of parameters. Structure, shapes and dtypes must stay,
        and so must constants. The averages that `optimizer.ema` keeps are of both before this.
        """
        del step
        return params, model_state

    def summary(self, totals: Mapping[str, Weighted]) -> dict[str, float]:
        """Turns totals over many batches into the figures to report: the means."""
        return {
            # Not `Weighted.mean`: its 0 where nothing was weighed would pass for a perfect loss.
            name: float(total.sum) / float(total.weight) if float(total.weight) else math.nan
            for name, total in totals.items()
        }

    def check(self, batch: Batch) -> None:
        """Raises DataError, in one line, where a batch cannot be what the task needs.

        Called before a run for the first batch of every split, and for all of its examples at once
        where they are in memory; and for the batch of a step whose loss is not finite. Here it
        looks whether the columns that `inputs` asks for are there, and are numbers.
        """
        numbers = {name: x for name, x in batch.items() if x.dtype != object}
        try:
            jax.eval_shape(self.inputs, numbers)
        except (KeyError, DataError) as error:
            for name in batch.keys() - numbers.keys():
                if repr(name) in str(error):
                    check_numeric(batch[name], f"task.inputs: {name!r}")
            with asking(batch, "task.inputs"):
                raise

    def _train(self, train: bool, method: str | None = None) -> dict[str, bool]:
        """The keyword `train`, where the model (or a method of it) takes it."""
        return {"train": train} if takes(self.model, "train", method or "__call__") else {}

    def _run(self, *args: Any) -> tuple[Any, ModelState]:
        return pair("forward", self.forward(*args))

    def _sown(
        self, changed: ModelState, metrics: Mapping[str, Weighted], batch: Batch, train: bool
    ) -> dict[str, Weighted]:
        """What the model sowed into "losses", by name; terms of one name are added up."""
        weights, sown = self.weights(batch, train), {}
        rows = next(iter(batch.values())).shape[0]
        for path, value in jax.tree_util.tree_leaves_with_path(changed.get(LOSSES, {})):
            # `sow` makes a tuple; its places are the other kind of key.
            name = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)][-1]
            if name in metrics:
                raise ConfigError(f"task.model: it sows {name!r}, a metric of the task's own.")
            term = weigh(_like_weights(name, value, rows, weights), weights)
            sown[name] = Weighted(sown[name].sum + term.sum, term.weight) if name in sown else term
        return sown


def pair(method: str, returned: Any) -> tuple[Any, ModelState]:
    """Returns what a method of a task returned: something, and collections by name.

    Raises:
      ConfigError: it is not such a pair.
    """
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping):
        return returned
    raise ConfigError(
        f"task.{method}: it returns {type(returned).__name__}; a pair is needed, whose second are "
        "collections by name ({} without any)."
    )


def _weighted(metrics: Any) -> dict[str, Weighted]:
    """Returns what `metrics` returned as pairs of scalars; raises ConfigError where it is not."""
    if not isinstance(metrics, Mapping) or "loss" not in metrics:
        told = listed(metrics) if isinstance(metrics, Mapping) else type(metrics).__name__
        raise ConfigError(f"task.metrics: {told} given; a dict with 'loss' in it is needed.")
    for name, pair in metrics.items():
        shapes = [jnp.shape(x) for x in pair] if isinstance(pair, tuple) else type(pair).__name__
        if shapes != [(), ()]:
            raise ConfigError(
                f"task.metrics: {name!r} is {shapes}; two scalars (sum, weight) are needed, as "
                "`lsm.metrics.weigh` gives them."
            )
    # Plain pairs are taken too.
    return {name: Weighted(*pair) for name, pair in metrics.items()}


def _like_weights(name: str, value: jax.Array, rows: int, weights: jax.Array | None) -> jax.Array:
    """A scalar, or a value an example (B,), broadcast to the shape of the weights."""
    if value.shape not in ((), (rows,)):
        raise ConfigError(
            f"task.model: it sows {name!r} of shape {value.shape} into 'losses'; a scalar or one "
            f"value an example, ({rows},), is needed."
        )
    # Like the weights of the loss, for a mean over the same: a scalar counts for each of them.
    shape = (rows,) if weights is None else weights.shape
    return jnp.broadcast_to(value.reshape(-1, *[1] * (len(shape) - 1)), shape)
