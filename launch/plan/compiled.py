"""Compiles an experiment's own program by the TPU's compiler, and reads the plan out of the result.

For GPUs, which XLA compiles for only where they are, as many TPUs stand in: what each device
computes, keeps and sends is what the TPU's compiler makes of the same program in its form without
kernels; how long that takes is reckoned with the GPU's figures (`launch.plan.estimate`).
"""

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator

import jax

from launch.plan import collectives, estimate
from launch.plan.hlo import Module
from launch.plan.report import Memory, Plan, Refusal, StepFlops
from launch.plan.request import Request, state_bytes, unanswered
from launch.plan.topology import Topology, bytes_of
from lsm.cost import hardware_flops
from lsm.mesh import make_mesh
from lsm.train import abstract_batch, build
from lsm.train.program import Program
from lsm.train.throughput import training_flops

QUICK = {"optimization_level": 9}
"""O0 in XLA's numbers; jax 0.10 takes no name."""


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
    basis = "quick" if quick else "priced" if topology.gpus else "compiled"
    base = unanswered(request, topology, program, horizon.steps, basis)
    needed = sum(state_bytes(program).values())
    if quick and needed > topology.available:
        reason = "State and batch alone do not fit."
        refused = Refusal("step", reason, needed, topology.available)
        return dataclasses.replace(base, refusal=refused)
    seconds: dict[str, float] = {}
    try:
        step = _compile(program, topology, basis, seconds)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refused = refusal([*seconds][-1], str(error))
        return dataclasses.replace(base, refusal=refused, compile_seconds=seconds)
    memory = memory_of(step, program, topology)
    base = dataclasses.replace(base, memory=memory, compile_seconds=seconds)
    return _answered(base, request, program, Module.parse(step.as_text()), topology, mesh)


def _compile(
    program: Program, topology: Topology, basis: str, seconds: dict[str, float]
) -> jax.stages.Compiled:
    """Returns the step, and puts the seconds that each part takes into `seconds`."""
    if basis == "compiled":
        with _timed(seconds, "init"):
            _compile_init(program.init.lower())
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


def _compile_init(lowered: jax.stages.Lowered) -> None:
    """Compiles what runs once: without optimising, which for random numbers takes a minute.

    Only where that is refused, the compiler gets the time to make it smaller.
    """
    try:
        lowered.compile(compiler_options=QUICK)
    except jax.errors.JaxRuntimeError:
        lowered.compile()


def memory_of(step: jax.stages.Compiled, program: Program, topology: Topology) -> Memory:
    """Returns the compiler's memory analysis, its arguments by what they are."""
    stats, parts = step.memory_analysis(), state_bytes(program)
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
    first = message.split("\n\n")[0].splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    listed = re.findall(r"Size: ([\d.]+[KMGT]).*?Shape: (\S+)", message, re.DOTALL)
    return Refusal(
        program=program,
        reason=re.sub(r"^E\d+: ", "", first),
        needed=_bytes_in(needed),
        available=_bytes_in(limit),
        largest=tuple((bytes_of(size), shape) for size, shape in listed[:10]),
    )


def _bytes_in(found: re.Match | None) -> int | None:
    return bytes_of(next(filter(None, found.groups()))) if found else None


def _answered(
    base: Plan,
    request: Request,
    program: Program,
    module: Module,
    topology: Topology,
    mesh: jax.sharding.Mesh,
) -> Plan:
    """Returns the plan with what the compiled step says."""
    chip, devices = topology.chip, mesh.size
    found = collectives.find(module, devices, switch=topology.gpus)
    sent = collectives.summarise(found, mesh, chip)
    arguments = program.abstract_state, program.abstract_batch
    hardware = hardware_flops(program.step, *arguments).total
    work = estimate.work_of(module, sent, hardware / devices, chip)
    model = training_flops(request.experiment.task, *arguments).total
    compute = max(hardware / devices, work.seen) / chip.flops
    roofline = estimate.roofline_of(compute, work.moved, sent, chip)
    ends = (roofline.least, work.serial)
    if base.basis != "compiled":
        ends = estimate.assumed_ends(roofline, chip)
    flops = StepFlops(
        model=model,
        hardware=hardware,
        compiled=work.seen * devices,
        unseen=work.unseen * devices,
    )
    return dataclasses.replace(
        base,
        flops=flops,
        collectives=sent,
        operations=work.operations,
        unknown_loops=work.unknown_loops,
        roofline=roofline,
        projection=estimate.project(base, model, *ends),
    )
