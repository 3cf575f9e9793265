"""The compiled pieces of a run: initialise, step, evaluate, laid out on a mesh."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lsm.config import Experiment
from lsm.cpu import unroll_micro_batches
from lsm.durations import Horizon
from lsm.errors import ConfigError, MeshError
from lsm.evaluate import Metric, columns
from lsm.mesh import (
    Layout,
    batch_sharding,
    batch_ways,
    check_axes,
    in_device_memory,
    in_host_memory,
    jit,
    make_mesh,
    offloaded,
    replicated,
    shard,
    table,
)
from lsm.metrics import Weighted
from lsm.optim import averaged_model_state, averaged_params
from lsm.rng import streams
from lsm.run.saved import checksums
from lsm.tasks import ModelState, Params, Task
from lsm.train.state import TrainState, finite, init_state
from lsm.train.step import Step, make_step, skip_nonfinite


@dataclasses.dataclass(frozen=True)
class Program:
    """Compiled functions and the shardings that they share.

    Attributes:
      mesh: the devices.
      abstract_state: shapes, dtypes and shardings of the state.
      abstract_batch: likewise of a whole batch, over all processes.
      batch: sharding of a batch.
      init: () -> state at step 0, made sharded.
      start: arrays by path -> state at step 0 that has them; see `lsm.train.init_state`.
      update: the pure function under `step`.
      step: (state, batch) -> (state, metrics); the state's buffers are donated.
      evaluate: (params, model_state, batch, number, step) -> (metrics, seen), for the batch of
        that number after `step` updates; `seen` are the whole arrays, on every device, that
        `evaluation.metrics` read: {} without any.
      finish: `evaluate` with what `evaluation.final` reads as well, for the end of a run.
      predict: (params, model_state, batch, number, step) -> predictions, whole on every device.
      finite: state -> whether its arrays are finite, by path; see `lsm.train.state.finite`.
      checksums: state -> a checksum of every leaf; see `lsm.run.saved.checksums`.
    """

    mesh: jax.sharding.Mesh
    abstract_state: TrainState
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    batch: jax.sharding.NamedSharding
    init: Callable[[], TrainState]
    start: Callable[[Mapping[str, jax.Array]], TrainState]
    update: Step
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Weighted]]]
    evaluate: Callable[..., tuple[dict[str, Weighted], dict[str, Any]]]
    finish: Callable[..., tuple[dict[str, Weighted], dict[str, Any]]]
    predict: Callable[..., dict[str, jax.Array]]
    finite: Callable[[TrainState], dict[str, jax.Array]]
    checksums: Callable[[TrainState], Any]

    def table(self) -> list[tuple[str, tuple[int, ...], str, str, int]]:
        """Returns path, shape, dtype, spec and bytes per device of every leaf of the state."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return table(self.abstract_state, shardings)


def build(
    experiment: Experiment,
    horizon: Horizon,
    batch: Mapping[str, Any],
    devices: list[jax.Device] | None = None,
) -> Program:
    """Returns the program for columns shaped like `batch`, of any rows; compiles nothing yet.

    Raises:
      MeshError: the mesh does not fit the devices, the batch or a parameter.
      ConfigError: the optimiser names parameters that the model has not.
    """
    train, task = experiment.train, experiment.task
    mesh = make_mesh(experiment.mesh, devices)
    _check_batch(train.batch_size, train.accumulation, mesh)
    master, stacks = train.params != "float32", _layout(experiment).stacks
    optimizer = experiment.optimizer.make(horizon, master=master, stacks=stacks)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    abstract_batch = {
        name: jax.ShapeDtypeStruct((train.batch_size, *x.shape[1:]), x.dtype, sharding=rows)
        for name, x in batch.items()
    }
    init = _init(experiment, optimizer, abstract_batch)
    shapes = jax.eval_shape(init)
    state = _shardings(experiment, mesh, shapes)
    abstract_state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, state
    )
    predict = make_predict(task, train.seed)
    often, final = experiment.evaluation.metrics, experiment.evaluation.final
    evaluate = _evaluate(experiment, predict, often)
    finish = _evaluate(experiment, predict, often + final)
    held = (state.params, state.model_state)
    if experiment.mesh.offload:  # averages are in host memory, too
        evaluate, finish, predict = (_on_devices(f, *held) for f in (evaluate, finish, predict))
    options = {"out_shardings": whole, "mesh": mesh}
    asked = (*evaluated(state), rows, whole, whole)
    update = _step(experiment, optimizer, mesh, state)
    evaluate = jit(evaluate, in_shardings=asked, **options)
    return Program(
        mesh=mesh,
        abstract_state=abstract_state,
        abstract_batch=abstract_batch,
        batch=rows,
        init=jit(init, in_shardings=(), out_shardings=state, calls="one"),
        start=functools.partial(_start, init, state),
        update=update,
        step=jit(
            update,
            in_shardings=(state, rows),
            out_shardings=(state, whole),
            donate=[0],
            calls="many",
            mesh=mesh,
        ),
        evaluate=evaluate,
        finish=jit(finish, in_shardings=asked, **options) if final else evaluate,
        predict=jit(predict, in_shardings=asked, **options),
        finite=jit(_on_devices(finite, state), in_shardings=(state,), **options),
        checksums=jit(_on_devices(checksums, state), in_shardings=(state,), **options),
    )


def _init(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> Callable[..., TrainState]:
    """Returns the pure function under `Program.init` and `Program.start`."""
    task, train = experiment.task, experiment.train

    def init(taken: Mapping[str, jax.Array] = MappingProxyType({})) -> TrainState:
        # One row is enough: no parameter depends on how many there are.
        row = {name: jnp.zeros((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}
        return init_state(task, optimizer, row, train.seed, train.params, taken)

    return init


def _start(
    init: Callable[..., TrainState], state: TrainState, taken: Mapping[str, jax.Array]
) -> TrainState:
    """See `Program.start`; `state` are the shardings."""
    placed = {path: x.sharding for path, x in taken.items()}
    return jit(init, in_shardings=(placed,), out_shardings=state, calls="one")(dict(taken))


def shardings_of(experiment: Experiment, mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """Returns where every array goes, by the rules of the config or of the model.

    Args:
      experiment: gives both.
      mesh: the devices.
      tree: a training state, or a tree with paths like its own.
    """
    layout = _layout(experiment)
    rules = experiment.mesh.rules or layout.rules
    check_axes(mesh, rules, layout, type(experiment.task.model).__name__)
    return shard(tree, mesh, rules)


def _layout(experiment: Experiment) -> Layout:
    return getattr(experiment.task.model, "layout", Layout())


def _shardings(experiment: Experiment, mesh: jax.sharding.Mesh, state: TrainState) -> TrainState:
    shardings = shardings_of(experiment, mesh, state)
    if not experiment.mesh.offload:
        return shardings
    opt_state = in_host_memory(shardings.opt_state, state.opt_state)
    return dataclasses.replace(shardings, opt_state=opt_state)


def _on_devices(function: Callable, *shardings: Any) -> Callable:
    """Returns `function` with its first arguments, laid out so, brought to the devices' memory."""
    there, count = in_device_memory(shardings), len(shardings)
    return lambda *args: function(*jax.device_put(args[:count], there), *args[count:])


def _step(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    shardings: TrainState,
) -> Step:
    train = experiment.train
    if experiment.mesh.offload:
        optimizer = offloaded(optimizer, shardings.opt_state)
    step = make_step(
        experiment.task,
        optimizer,
        seed=train.seed,
        gradient=train.gradient,
        accumulation=train.accumulation,
        unroll=unroll_micro_batches(mesh.devices.flat[0].platform),
    )
    return skip_nonfinite(step) if train.skip_nonfinite else step


def _evaluate(experiment: Experiment, predict: Callable, metrics: Sequence[Metric]) -> Callable:
    """Returns the pure function under `Program.evaluate`, for these metrics."""
    task, seed = experiment.task, experiment.train.seed
    read = {"weight", *columns(metrics)}

    def evaluate(params, model_state, batch, number, step):
        rngs = streams(task.streams, seed, number, "evaluation")
        figures = task.evaluate(params, model_state, batch, rngs, step)
        if not metrics:
            return figures, {}
        # The same forward pass as above: the compiler makes one of the two.
        predictions = predict(params, model_state, batch, number, step)
        kept = {name: x for name, x in batch.items() if name in read}
        return figures, {"predictions": predictions, "batch": kept}

    return evaluate


def make_predict(task: Task, seed: int) -> Callable[..., dict[str, jax.Array]]:
    """Returns the pure function (params, model_state, batch, number, step) -> predictions.

    Random streams are those of evaluation, at the number of the batch. While it is traced it
    raises ConfigError where an array has not one row an example.
    """

    def predict(params, model_state, batch, number, step):
        rngs = streams(task.streams, seed, number, "evaluation")
        predictions = task.predict(params, model_state, batch, rngs, step)
        if not isinstance(predictions, Mapping):
            raise ConfigError(
                f"task.predictions: {type(predictions).__name__} given; a dict of arrays is needed."
            )
        rows = next(iter(batch.values())).shape[0]
        for name, x in predictions.items():
            shape = getattr(x, "shape", None)
            if shape is None or shape[:1] != (rows,):
                found = type(x).__name__ if shape is None else f"shape {shape}"
                raise ConfigError(
                    f"task.predictions: {name!r} is {found} for a batch of {rows} examples; named "
                    "arrays with one row an example are needed."
                )
        return predictions

    return predict


def evaluated(state: TrainState) -> tuple[Params, ModelState]:
    """Returns what evaluation uses: the moving averages of both, or themselves."""
    averaged = averaged_model_state(state.opt_state, state.model_state)
    return averaged_params(state.opt_state, state.params), averaged


def _check_batch(batch_size: int, accumulation: int, mesh: jax.sharding.Mesh) -> None:
    ways = batch_ways(mesh)
    if batch_size % (ways * accumulation):
        parts = f"{ways} devices" + (f" x {accumulation} micro-batches" if accumulation > 1 else "")
        fitting = max(batch_size // (ways * accumulation), 1) * ways * accumulation
        raise MeshError(
            f"train.batch_size: {batch_size} does not divide over {parts}; "
            f"the nearest that does is {fitting}."
        )
