"""The compiled pieces of a run: initialise, step, evaluate, laid out on a mesh."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lsm.axes import Layout
from lsm.checkpoint import checksums
from lsm.config import Experiment
from lsm.durations import Horizon
from lsm.errors import MeshError
from lsm.metrics import Weighted
from lsm.optim import averaged_params, keep_master
from lsm.sharding import (
    batch_sharding,
    batch_ways,
    check_axes,
    compile,
    make_mesh,
    replicated,
    shard,
    table,
)
from lsm.train.offload import in_device_memory, in_host_memory, offloaded
from lsm.train.state import TrainState, init_state
from lsm.train.step import Step, make_step, skip_nonfinite


@dataclasses.dataclass(frozen=True)
class Program:
    """Compiled functions and the shardings that they share.

    Attributes:
      mesh: the devices.
      abstract_state: shapes, dtypes and shardings of the state.
      batch: sharding of a batch.
      init: () -> state at step 0, made sharded.
      step: (state, batch) -> (state, metrics); the state's buffers are donated.
      evaluate: (params, model_state, batch) -> metrics.
      finite: params -> whether every parameter is finite.
      checksums: state -> a checksum of every leaf; see `lsm.checkpoint.checksums`.
      summary: the task's figures from totals of its metrics.
    """

    mesh: jax.sharding.Mesh
    abstract_state: TrainState
    batch: jax.sharding.NamedSharding
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Weighted]]]
    evaluate: Callable[[Any, Any, Any], dict[str, Weighted]]
    finite: Callable[[Any], jax.Array]
    checksums: Callable[[TrainState], Any]
    summary: Callable[[Mapping[str, Weighted]], dict[str, float]]

    def table(self) -> list[tuple[str, tuple[int, ...], str, str, int]]:
        """Returns path, shape, dtype, spec and bytes per device of every leaf of the state."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return table(self.abstract_state, shardings)


def build(
    experiment: Experiment,
    horizon: Horizon,
    batch: Mapping[str, np.ndarray],
    devices: list[jax.Device] | None = None,
) -> Program:
    """Returns the program of an experiment for batches shaped like `batch`; compiles nothing yet.

    Raises:
      MeshError: the mesh does not fit the devices, the batch or a parameter.
      ConfigError: the optimiser names parameters that the model has not.
    """
    train, task = experiment.train, experiment.task
    mesh = make_mesh(experiment.mesh, devices)
    _check_batch(train.batch_size, train.accumulation, mesh)
    optimizer = experiment.optimizer.make(horizon)
    if train.params != "float32":
        optimizer = keep_master(optimizer)
    row = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}

    def init() -> TrainState:
        zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in row.items()}
        return init_state(task, optimizer, zeros, train.seed, train.params)

    abstract = jax.eval_shape(init)
    state = _shardings(experiment, mesh, abstract)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, state
    )

    def sums(trained: TrainState) -> TrainState:
        return checksums(jax.device_put(trained, in_device_memory(state)))

    def evaluate(params: Any, model_state: Any, batch: Any) -> dict[str, Weighted]:
        if experiment.mesh.offload:  # a moving average of the parameters is in host memory
            params = jax.device_put(params, state.params)
        return task.evaluate(params, model_state, batch)

    rows, whole = batch_sharding(mesh), replicated(mesh)
    options = {"out_shardings": whole, "mesh": mesh}
    return Program(
        mesh=mesh,
        abstract_state=abstract,
        batch=rows,
        init=compile(init, in_shardings=(), out_shardings=state),
        step=compile(
            _step(experiment, optimizer, mesh, state),
            in_shardings=(state, rows),
            out_shardings=(state, whole),
            donate=[0],
            hot=True,
            mesh=mesh,
        ),
        evaluate=compile(
            evaluate,
            in_shardings=(evaluated_params(state), state.model_state, rows),
            **options,
        ),
        finite=compile(_all_finite, in_shardings=(state.params,), **options),
        checksums=compile(sums, in_shardings=(state,), **options),
        summary=task.summary,
    )


def _shardings(experiment: Experiment, mesh: jax.sharding.Mesh, state: TrainState) -> TrainState:
    """Returns where every array of the state goes, by the rules of the config or of the model."""
    model = experiment.task.model
    layout = getattr(model, "layout", Layout())
    rules = experiment.mesh.rules or layout.rules
    check_axes(mesh, rules, layout, type(model).__name__)
    shardings = shard(state, mesh, rules)
    if not experiment.mesh.offload:
        return shardings
    opt_state = in_host_memory(shardings.opt_state, state.opt_state)
    return dataclasses.replace(shardings, opt_state=opt_state)


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
        accumulation=train.accumulation,
        unroll=mesh.devices.flat[0].platform == "cpu",
    )
    return skip_nonfinite(step) if train.skip_nonfinite else step


def evaluated_params(state: TrainState) -> Any:
    """Returns what evaluation uses: the moving average of the parameters, or themselves."""
    return averaged_params(state.opt_state, state.params)


def _all_finite(params: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))


def _check_batch(batch_size: int, accumulation: int, mesh: jax.sharding.Mesh) -> None:
    ways = batch_ways(mesh)
    if batch_size % (ways * accumulation):
        parts = f"{ways} devices" + (f" x {accumulation} micro-batches" if accumulation > 1 else "")
        fitting = max(batch_size // (ways * accumulation), 1) * ways * accumulation
        raise MeshError(
            f"train.batch_size: {batch_size} does not divide over {parts}; "
            f"the nearest that does is {fitting}."
        )
