"""Compiles an experiment's own program by the TPU's compiler, and reads the plan out of the result.

For GPUs, which XLA compiles for only where they are, as many TPUs stand in: what each device
computes, keeps and sends is what the TPU's compiler makes of the same program in its form without
kernels; how long that takes is reckoned with the GPU's figures (`launch.plan.estimate`).
"""

import dataclasses
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from launch.plan import collectives, estimate
from launch.plan.hlo import parse
from launch.plan.report import Memory, Plan, Refusal, Workload
from launch.plan.topology import Topology, bytes_of
from lsm.config import Experiment
from lsm.cost import hardware_flops
from lsm.mesh import local_bytes, make_mesh
from lsm.tasks import LanguageModelling
from lsm.train import abstract_batch, build
from lsm.train.program import Program
from lsm.train.throughput import active_params, training_flops

_log = logging.getLogger("launch.plan")
LIST_PRICE = "Google's list price on demand, as of 2025"
QUICK = {"optimization_level": 9}  # O0 in XLA's numbers; jax 0.10 takes no name


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
    _log.info("shapes")
    batch, horizon = abstract_batch(experiment, request.data_dir)
    program = build(experiment, horizon, batch, list(topology.compiled_for))
    listed = LIST_PRICE if topology.chip.price else "unknown; give --price"
    base = Plan(
        run=_workload(request, program, horizon.steps),
        topology=topology,
        price=topology.chip.price if request.price is None else request.price,
        price_source=listed if request.price is None else "given",
        basis="quick" if quick else "priced" if topology.gpus else "compiled",
    )
    parts = _state_bytes(program)
    if quick and (needed := sum(parts.values())) > topology.available:
        refused = Refusal("state", "State and batch alone are over.", needed, topology.available)
        return dataclasses.replace(base, refusal=refused)
    seconds: dict[str, float] = {}
    for name in ("init", "step") if base.basis == "compiled" else ("step",):
        start = time.monotonic()
        try:
            compiled = _compile(name, program, topology, quick)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return dataclasses.replace(base, refusal=refusal(name, str(error)))
        seconds[name] = time.monotonic() - start
    _log.info("read step")
    memory = memory_of(compiled, parts, topology)
    base = dataclasses.replace(base, memory=memory, compile_seconds=seconds)
    entry, arguments = parse(compiled.as_text()), (program.abstract_state, program.abstract_batch)
    sent = collectives.collectives_of(entry, mesh, topology.chip)
    hardware = hardware_flops(program.step, *arguments)
    model = training_flops(experiment.task, *arguments).total
    unknown = sorted(hardware.uncounted - {"while"})  # the program says how often loops turn
    base = dataclasses.replace(base, uncounted=tuple(unknown))
    return estimate.answered(base, entry, sent, hardware.total, model)


def _workload(request: Request, program: Program, steps: int) -> Workload:
    experiment, batch = request.experiment, program.abstract_batch
    params = program.abstract_state.params
    column = getattr(experiment.task, "tokens", None)
    given = isinstance(experiment.task, LanguageModelling)  # the first, which is not predicted
    return Workload(
        name=experiment.name,
        config=request.config,
        overrides=request.overrides,
        mesh=dict(program.mesh.shape),
        parameters=sum(x.size for x in jax.tree.leaves(params)),
        active_parameters=active_params(experiment.task, params),
        batch_size=experiment.train.batch_size,
        accumulation=experiment.train.accumulation,
        tokens_per_example=batch[column].shape[1] - given if column in batch else None,
        steps=steps,
        buckets=bool(getattr(experiment.data.source, "buckets", ())),
    )


def _state_bytes(program: Program) -> dict[str, int]:
    """Returns bytes of HBM that a step's arguments take on each device, as `Memory` names them."""

    def size(tree: Any) -> int:
        leaves = [x for x in jax.tree.leaves(tree) if x.sharding.memory_kind != "pinned_host"]
        return sum(local_bytes(leaf, leaf.sharding) for leaf in leaves)

    state = program.abstract_state
    return {
        "parameters": size(state.params),
        "optimizer_state": size(state.opt_state),
        "other_state": size((state.step, state.model_state)),
        "batch": size(program.abstract_batch),
    }


def _compile(name: str, program: Program, topology: Topology, quick: bool) -> jax.stages.Compiled:
    """Returns the compiled "init" or "step" of a program.

    What runs once is compiled without optimising, which for random numbers takes a minute; only
    where that is refused, the compiler gets the time to make it smaller.
    """
    _log.info("lower %s", name)
    if name == "step":
        traced = program.step.trace(program.abstract_state, program.abstract_batch)
        lowered = traced.lower(lowering_platforms=(topology.lowered_for,))
        _log.info("compile step")
        return lowered.compile(compiler_options=QUICK if quick else None)
    lowered = program.init.lower()
    _log.info("compile init")
    try:
        return lowered.compile(compiler_options=QUICK)
    except jax.errors.JaxRuntimeError:
        return lowered.compile()


def memory_of(step: jax.stages.Compiled, parts: Mapping[str, int], topology: Topology) -> Memory:
    """Returns the compiler's memory analysis, its arguments by what they are."""
    stats = step.memory_analysis()
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
