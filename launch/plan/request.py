"""What is asked for, and what a plan says of it unasked."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from launch.plan.report import Machine, Plan, Workload
from launch.plan.topology import Topology
from lsm.config import Experiment
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


def state_bytes(program: Program) -> dict[str, int]:
    """Returns bytes of HBM that a step's arguments take on each device, as `Memory` names them."""
    state = program.abstract_state
    return {
        "parameters": _local_bytes(state.params),
        "optimizer_state": _local_bytes(state.opt_state),
        "other_state": _local_bytes((state.step, state.model_state)),
        "batch": _local_bytes(program.abstract_batch),
    }


def _local_bytes(tree: Any) -> int:
    """Bytes of HBM that a tree of shapes with shardings takes on each device, unpadded."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != "pinned_host"
    )


def unanswered(
    request: Request, topology: Topology, program: Program, steps: int, basis: str
) -> Plan:
    """Returns the plan without its answers: the workload and the machine."""
    experiment, batch = request.experiment, program.abstract_batch
    column = getattr(experiment.task, "tokens", None)
    workload = Workload(
        name=experiment.name,
        config=request.config,
        overrides=dict(request.overrides),
        mesh=dict(program.mesh.shape),
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(program.abstract_state.params)),
        batch_size=experiment.train.batch_size,
        accumulation=experiment.train.accumulation,
        tokens_per_example=batch[column].shape[1] - 1 if column in batch else None,
        steps=steps,
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
