"""Dispatches of the training step: one step each, or several where steps are short.

Putting a batch in place and dispatching a step costs the host some 0.15 ms: nothing to a step of
10 ms, half of one of 0.3 ms. Several steps in one dispatch, a loop inside the compiled program, pay
it once. They compute what single steps do: on a CPU to the bit, elsewhere as far as the compiler
takes the same kernels.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding, PartitionSpec

from lsm.data import Columns, Read, Shuffled, TrainBatches
from lsm.mesh import BATCH_AXES, jit, place, replicated
from lsm.train.state import TrainState
from lsm.train.step import Step
from lsm.train.throughput import Throughput
from lsm.train.trainer import Trainer

_log = logging.getLogger("lsm.train")

_SECONDS = 0.01  # of a dispatch: what it costs is hidden, and an interruption waits no longer
_MOST = 32
_FLOPS = 5e10  # FLOP/s that a device is taken to reach where its peak is not known
_SHARE = 0.3  # of the peak elsewhere; how many steps a dispatch has is all that depends on it
_FITS = 2**28  # bytes of a data set that devices keep: little beside the memory of any of them


class Execution(Protocol):
    """How a dispatch is made.

    Attributes:
      most: steps that it has at most.
    """

    most: int

    def prepare(self, steps: range) -> Columns:
        """Returns what `run` needs for these steps (counted from 1); called in other threads."""

    def run(self, state: TrainState, prepared: Columns, count: int) -> tuple[TrainState, Any]:
        """Dispatches `count` steps; returns the new state and their metrics, () or (most,)."""


class OneStep:
    """`Program.step`, once."""

    most = 1

    def __init__(self, trainer: Trainer):
        self._batch_at, self._program = trainer.train.batch_at, trainer.program

    def prepare(self, steps: range) -> Columns:
        """See `Execution.prepare`."""
        return self._batch_at(steps.start - 1)

    def run(self, state: TrainState, prepared: Columns, count: int) -> tuple[TrainState, Any]:
        """See `Execution.run`."""
        return self._program.step(state, place(prepared, self._program.batch))


class SeveralSteps:
    """`Program.update` in a loop on the devices.

    Batches are put in place in one transfer; where the devices hold the data set, they are told
    the numbers of the examples alone.
    """

    def __init__(self, trainer: Trainer, most: int):
        self.most, program = most, trainer.program
        whole, rows = replicated(program.mesh), PartitionSpec(None, BATCH_AXES)
        self._sharding = NamedSharding(program.mesh, rows)
        self._prepare, self._held, read = _source(trainer.train, whole)
        state = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state)
        self._run = jit(
            repeated(program.update, read),
            in_shardings=(state, whole, self._sharding, whole),
            out_shardings=(state, whole),
            donate=[0],
            calls="many",
            mesh=program.mesh,
        )

    def prepare(self, steps: range) -> Columns:
        """See `Execution.prepare`; columns (most, n, ...)."""
        parts = [self._prepare(step - 1) for step in steps]
        # One shape for any count, and one compilation; what fills it up is never read.
        parts += parts[-1:] * (self.most - len(parts))
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def run(self, state: TrainState, prepared: Columns, count: int) -> tuple[TrainState, Any]:
        """See `Execution.run`."""
        return self._run(state, self._held, place(prepared, self._sharding), np.int32(count))


def repeated(step: Step, read: Read) -> Callable[..., tuple[TrainState, Any]]:
    """Returns the pure function (state, held, parts, count) -> (state, metrics) of `count` steps.

    Step i is made on `read(held, part i)`, where parts are arrays (most, ...); metrics are (most,),
    and 0 from `count` on.
    """

    def steps(state, held, parts, count):
        def one(state, i):
            return step(state, read(held, jax.tree.map(lambda x: x[i], parts)))

        def body(i, carry):
            state, kept = carry
            state, metrics = one(state, i)
            return state, jax.tree.map(lambda all, new: all.at[i].set(new), kept, metrics)

        most = len(jax.tree.leaves(parts)[0])
        _, metrics = jax.eval_shape(one, state, 0)
        none = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), metrics)
        return jax.lax.fori_loop(0, count, body, (state, none))

    return steps


def execution(trainer: Trainer, throughput: Throughput) -> Execution:
    """Returns how `train.steps_per_execution` asks for it; "auto" by the work of a step."""
    most = _most(trainer, throughput)
    if most > 1 and (obstacle := _obstacle(trainer)):
        if trainer.experiment.train.steps_per_execution != "auto":
            _log.warning("train.steps_per_execution: 1 instead of %d; %s.", most, obstacle)
        most = 1
    return SeveralSteps(trainer, most) if most > 1 else OneStep(trainer)


def compile_ahead(trainer: Trainer, throughput: Throughput) -> None:
    """Compiles what a new run calls first; the calls find it compiled.

    A loop over several steps is left out: it is compiled for the data that the devices hold.
    """
    program = trainer.program
    program.init.lower().compile()
    if _most(trainer, throughput) == 1:
        program.step.lower(program.abstract_state, program.abstract_batch).compile()


def _most(trainer: Trainer, throughput: Throughput) -> int:
    """Returns how many steps a dispatch has where nothing stands in the way."""
    asked = trainer.experiment.train.steps_per_execution
    if asked != "auto":
        return asked
    steps = trainer.horizon.steps
    rate = throughput.peak * _SHARE if throughput.peak else _FLOPS
    seconds = max(throughput.flops / throughput.devices / rate, 1e-9)
    return max(min(_MOST, int(_SECONDS / seconds), steps), 1)


def _obstacle(trainer: Trainer) -> str | None:
    """Returns why steps of this program are better dispatched one by one, or None."""
    program, encoder = trainer.program, trainer.train.dataset.encoder
    if encoder is not None and len(encoder.buckets) > 1:
        return "batches of texts in buckets differ in shape"
    if trainer.experiment.mesh.offload:
        return "with mesh.offload the optimiser's state is moved step by step"
    if program.mesh.devices.flat[0].platform == "cpu":
        step = program.step.trace(program.abstract_state, program.abstract_batch)
        if "conv_general_dilated" in _primitives(step.jaxpr.jaxpr):
            return "in a loop on a CPU a convolution is ten times as slow, and rounds differently"
    return None


def _primitives(jaxpr: Any) -> set[str]:
    inner = (_primitives(part) for eqn in jaxpr.eqns for part in jaxprs_in_params(eqn.params))
    return {eqn.primitive.name for eqn in jaxpr.eqns}.union(*inner)


def _source(
    batches: TrainBatches, whole: NamedSharding
) -> tuple[Callable[[int], Columns], dict[str, jax.Array], Read]:
    """Returns what to prepare for a step (0, 1, ...), what the devices hold, and how both read."""
    resident = None
    if not batches.augment and batches.sampling == Shuffled():
        resident = batches.dataset.resident()
    if not resident or sum(x.nbytes for x in resident[0].values()) > _FITS:
        return batches.batch_at, {}, lambda _, batch: batch
    columns, read = resident
    held = {
        name: jax.make_array_from_callback(x.shape, whole, lambda index, x=x: x[index])
        for name, x in columns.items()
    }
    return batches.examples_at, held, lambda held, part: read(held, part["examples"])
