"""What is asked for, as a program for some devices, and what a plan says of it unasked."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from launch.plan.report import Machine, Plan, Workload
from launch.plan.topology import Topology
from lsm.config import Experiment
from lsm.durations import Horizon
from lsm.train import abstract_batch, build
from lsm.train.program import Program

LIST_PRICE = "Google's list price on demand, as of 2025"


@dataclasses.dataclass(frozen=True)
class Request:
    """What to plan.

    Attributes:
      experiment: what would be trained.
      config: where it came from, for the report.
      overrides: likewise.
      data_dir: where datasets are.
      price: USD for one chip and hour; None takes the list price, where one is known.
    """

    experiment: Experiment
    config: str = ""
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    data_dir: str | os.PathLike | None = None
    price: float | None = None


@dataclasses.dataclass(frozen=True)
class Shaped:
    """A program whose arguments are shapes with shardings: nothing is allocated, nothing runs.

    Attributes:
      program: of the experiment.
      batch: of a step, by column.
      horizon: length of the run.
    """

    program: Program
    batch: Mapping[str, jax.ShapeDtypeStruct]
    horizon: Horizon

    @classmethod
    def of(cls, request: Request, devices: Sequence[jax.Device]) -> "Shaped":
        """Builds the program for `devices`.

        Raises:
          DataError: the shapes of the data are not known, and it is not there.
          MeshError: the mesh does not fit the devices, the batch or the parameters.
        """
        batch, horizon = abstract_batch(request.experiment, request.data_dir)
        program = build(request.experiment, horizon, batch, list(devices))
        batch = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=program.batch)
            for name, x in batch.items()
        }
        return cls(program, batch, horizon)

    @property
    def arguments(self) -> tuple[Any, Any]:
        """What a step takes: the state and the batch."""
        return self.program.abstract_state, self.batch

    @property
    def local_bytes(self) -> dict[str, int]:
        """Bytes of HBM that the arguments take on each device, unpadded, as `Memory` names them."""
        state = self.program.abstract_state
        return {
            "parameters": local_bytes(state.params),
            "optimizer_state": local_bytes(state.opt_state),
            "other_state": local_bytes((state.step, state.model_state)),
            "batch": local_bytes(self.batch),
        }


def local_bytes(tree: Any) -> int:
    """Bytes of HBM that a tree of shapes with shardings takes on each device, unpadded."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != "pinned_host"
    )


def unanswered(request: Request, topology: Topology, shaped: Shaped, basis: str) -> Plan:
    """Returns the plan without its answers: the workload and the machine."""
    experiment, program = request.experiment, shaped.program
    column = getattr(experiment.task, "tokens", None)
    workload = Workload(
        name=experiment.name,
        config=request.config,
        overrides=dict(request.overrides),
        mesh=dict(program.mesh.shape),
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(program.abstract_state.params)),
        batch_size=experiment.train.batch_size,
        accumulation=experiment.train.accumulation,
        tokens_per_example=shaped.batch[column].shape[1] - 1 if column in shaped.batch else None,
        steps=shaped.horizon.steps,
    )
    chip, price = topology.chip, request.price
    source = "given" if price is not None else LIST_PRICE if chip.price else "unknown; give --price"
    machine = Machine(
        topology=topology.name,
        slices=topology.slices,
        chip=chip.name,
        chips=topology.chips,
        devices=len(topology.devices),
        peak_flops=chip.flops,
        price=chip.price if price is None else price,
        price_source=source,
    )
    return Plan(run=workload, machine=machine, basis=basis, versions=topology.versions)
