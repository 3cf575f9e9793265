"""Compiles an experiment's own program by the TPU's compiler, and reads the plan out of the result.

For GPUs, which XLA compiles for only where they are, as many TPUs stand in: what each device
computes, keeps and sends is what the TPU's compiler makes of the same program in its form without
kernels; how long that takes is reckoned with the GPU's figures (`launch.plan.estimate`).
"""

import contextlib
import dataclasses
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from launch.plan import collectives, estimate
from launch.plan.hlo import Computation, parse
from launch.plan.report import Machine, Memory, Plan, Refusal, StepFlops, Workload
from launch.plan.topology import Topology, bytes_of
from lsm.config import Experiment
from lsm.cost import hardware_flops
from lsm.mesh import make_mesh
from lsm.train import abstract_batch, build
from lsm.train.program import Program
from lsm.train.throughput import training_flops

LIST_PRICE = "Google's list price on demand, as of 2025"

QUICK = {"optimization_level": 9}
"""O0 in XLA's numbers; jax 0.10 takes no name."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to plan."""

    experiment: Experiment  # what would be trained
    config: str = ""  # where it came from, for the report
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)  # likewise
    data_dir: str | os.PathLike | None = None  # where datasets are
    price: float | None = None  # USD for one chip and hour; None takes the list price


def plan(request: Request, topology: Topology, quick: bool = False) -> Plan:
    """Returns the plan of an experiment on a topology.

    Args:
      request: what to plan.
      topology: on what.
      quick: compile the step without optimisation, in a third to a fifth of the time: memory
        is within a fifth of the final one, and times are good to compare with each other alone.

    Raises:
      DataError: the shapes of the data are not known, and it is not there.
      MeshError: the mesh does not fit the devices, the batch or the parameters.
    """
    experiment = request.experiment
    mesh = make_mesh(experiment.mesh, topology.devices)
    batch, horizon = abstract_batch(experiment, request.data_dir)
    program = build(experiment, horizon, batch, list(topology.compiled_for))
    seconds: dict[str, float] = {}
    base = Plan(
        run=_workload(request, program, horizon.steps),
        machine=_machine(request, topology),
        basis="quick" if quick else "priced" if topology.gpus else "compiled",
        versions=topology.versions,
        compile_seconds=seconds,
    )
    needed = sum(_state_bytes(program).values())
    if quick and needed > topology.available:
        reason = "State and batch alone do not fit."
        refused = Refusal("step", reason, needed, topology.available)
        return dataclasses.replace(base, refusal=refused)
    try:
        step = _compile(program, topology, base.basis, seconds)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return dataclasses.replace(base, refusal=refusal([*seconds][-1], str(error)))
    base = dataclasses.replace(base, memory=memory_of(step, program, topology))
    return _answered(base, request, program, parse(step.as_text()), topology, mesh)


def _workload(request: Request, program: Program, steps: int) -> Workload:
    experiment, batch = request.experiment, program.abstract_batch
    column = getattr(experiment.task, "tokens", None)
    return Workload(
        name=experiment.name,
        config=request.config,
        overrides=request.overrides,
        mesh=dict(program.mesh.shape),
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(program.abstract_state.params)),
        batch_size=experiment.train.batch_size,
        accumulation=experiment.train.accumulation,
        tokens_per_example=batch[column].shape[1] - 1 if column in batch else None,
        steps=steps,
    )


def _machine(request: Request, topology: Topology) -> Machine:
    chip, price = topology.chip, request.price
    source = "given" if price is not None else LIST_PRICE if chip.price else "unknown; give --price"
    return Machine(
        topology=topology.name,
        slices=topology.slices,
        chip=chip.name,
        chips=len(topology.devices) // chip.devices_per_chip,
        devices=len(topology.devices),
        peak_flops=chip.flops,
        price=chip.price if price is None else price,
        price_source=source,
    )


def _state_bytes(program: Program) -> dict[str, int]:
    """Returns bytes of HBM that a step's arguments take on each device, as `Memory` names them."""
    state = program.abstract_state
    trees = {
        "parameters": state.params,
        "optimizer_state": state.opt_state,
        "other_state": (state.step, state.model_state),
        "batch": program.abstract_batch,
    }
    return {name: sum(map(_local_bytes, jax.tree.leaves(tree))) for name, tree in trees.items()}


def _local_bytes(leaf: Any) -> int:
    """Bytes of HBM that a shape with a sharding takes on each device, unpadded."""
    if leaf.sharding.memory_kind == "pinned_host":
        return 0
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize


def _compile(
    program: Program, topology: Topology, basis: str, seconds: dict[str, float]
) -> jax.stages.Compiled:
    """Returns the step, and puts the seconds that each part takes into `seconds`.

    What runs once is compiled without optimising, which for random numbers takes a minute; only
    where that is refused, the compiler gets the time to make it smaller.
    """
    if basis == "compiled":
        with _timed(seconds, "init"):
            lowered = program.init.lower()
            try:
                lowered.compile(compiler_options=QUICK)
            except jax.errors.JaxRuntimeError:
                lowered.compile()
    with _timed(seconds, "step"):
        traced = program.step.trace(program.abstract_state, program.abstract_batch)
        lowered = traced.lower(lowering_platforms=(topology.lowered_for,))
        return lowered.compile(compiler_options=QUICK if basis == "quick" else None)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = time.monotonic() - start


def memory_of(step: jax.stages.Compiled, program: Program, topology: Topology) -> Memory:
    """Returns the compiler's memory analysis, its arguments by what they are."""
    stats, parts = step.memory_analysis(), _state_bytes(program)
    return Memory(
        **parts,
        padding=stats.argument_size_in_bytes - sum(parts.values()),
        results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        available=topology.available,
        capacity=int(topology.chip.memory),
        host=stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes,
    )


def refusal(program: str, message: str) -> Refusal:
    """Returns what the compiler's RESOURCE_EXHAUSTED says, in figures where it gives them."""
    needed = re.search(r"\(([\d.]+[KMGT])\) exceeds|Used ([\d.]+[KMGT]) of", message)
    limit = re.search(r"available HBM \(([\d.]+[KMGT])\)|of ([\d.]+[KMGT]) hbm", message)
    needed, limit = (found and bytes_of(found[found.lastindex]) for found in (needed, limit))
    listed = re.findall(r"Size: ([\d.]+[KMGT]).*?Shape: (\S+)", message, re.DOTALL)
    largest = tuple((bytes_of(size), shape) for size, shape in listed[:10])
    first = message.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    return Refusal(program, re.sub(r"^E\d+: ", "", first), needed, limit, largest)


def _answered(
    base: Plan,
    request: Request,
    program: Program,
    entry: Computation,
    topology: Topology,
    mesh: jax.sharding.Mesh,
) -> Plan:
    """Returns the plan with what the compiled step says."""
    chip, devices = topology.chip, mesh.size
    arguments = program.abstract_state, program.abstract_batch
    hardware = hardware_flops(program.step, *arguments).total
    model = training_flops(request.experiment.task, *arguments).total
    sent = collectives.collectives_of(entry, mesh, chip)
    operations, loops = estimate.operations_of(entry, sent, hardware / devices, chip)
    seen, unseen = (
        devices * sum(one.flops for one in operations if (one.kind == estimate.KERNELS) is kernels)
        for kernels in (False, True)
    )
    compute = max(hardware, seen) / devices / chip.flops
    roofline = estimate.roofline_of(compute, operations, sent, chip)
    ends = roofline.least, estimate.serial(operations)
    if base.basis != "compiled":
        ends = estimate.assumed_ends(roofline, chip)
    return dataclasses.replace(
        base,
        flops=StepFlops(model=model, hardware=hardware, compiled=seen, custom_calls=unseen),
        collectives=sent,
        operations=operations,
        unknown_loops=loops,
        roofline=roofline,
        projection=estimate.project(base, model, *ends),
    )
