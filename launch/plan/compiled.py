"""Compiles an experiment's own program for a TPU topology, and reads the plan out of the result."""

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from launch.plan import collectives, estimate
from launch.plan.hlo import Module
from launch.plan.report import Memory, Plan, Refusal, StepFlops
from launch.plan.request import Request, Shaped, unanswered
from launch.plan.topology import Topology, bytes_of
from lsm.cost import hardware_flops
from lsm.train.throughput import training_flops

_QUICK = {"optimization_level": 9}
"""O0 in XLA's numbers; jax 0.10 takes no name."""


def plan(request: Request, topology: Topology) -> Plan:
    """Returns the plan of an experiment on a topology of TPUs.

    Raises:
      DataError: the shapes of the data are not known, and it is not there.
      MeshError: the mesh does not fit the devices, the batch or the parameters.
    """
    shaped = Shaped.of(request, topology.devices)
    base, seconds = unanswered(request, topology, shaped), {}
    try:
        seconds["init"] = _timed(_compile_quickly, shaped.program.init.lower())[1]
        lowered = shaped.program.step.lower(*shaped.arguments)
        step, seconds["step"] = _timed(lowered.compile)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refused = refusal("step" if "init" in seconds else "init", str(error))
        return dataclasses.replace(base, refusal=refused, compile_seconds=seconds)
    memory = memory_of(step, shaped, topology)
    base = dataclasses.replace(base, memory=memory, compile_seconds=seconds)
    return _answered(base, request, shaped, Module.parse(step.as_text()), topology)


def _timed(function: Callable, *arguments: Any) -> tuple[Any, float]:
    """Returns a result, and the seconds that it took."""
    start = time.monotonic()
    return function(*arguments), time.monotonic() - start


def _compile_quickly(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles what runs once: without optimising, which for random numbers takes a minute.

    Only where that is refused, the compiler gets the time to make it smaller.
    """
    try:
        return lowered.compile(compiler_options=_QUICK)
    except jax.errors.JaxRuntimeError:
        return lowered.compile()


def memory_of(step: jax.stages.Compiled, shaped: Shaped, topology: Topology) -> Memory:
    """Returns the compiler's memory analysis, its arguments by what they are."""
    stats, parts = step.memory_analysis(), shaped.local_bytes
    return Memory(
        **parts,
        padding=stats.argument_size_in_bytes - sum(parts.values()),
        results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        available=topology.available,
        capacity=int(topology.chip.memory),
        peak=stats.peak_memory_in_bytes or None,
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
    base: Plan, request: Request, shaped: Shaped, module: Module, topology: Topology
) -> Plan:
    """Returns the plan with what the compiled step says."""
    chip, machine = topology.chip, base.machine
    found = collectives.find(module, machine.devices)
    sent = collectives.summarise(found, shaped.program.mesh, chip)
    hardware = hardware_flops(shaped.program.step, *shaped.arguments).total
    work = estimate.work_of(module, sent, hardware / machine.devices, chip)
    model = training_flops(request.experiment.task, *shaped.arguments).total
    compute = max(hardware / machine.devices, work.seen) / chip.flops
    roofline = estimate.roofline_of(compute, work.moved, sent, chip)
    flops = StepFlops(
        model=model,
        hardware=hardware,
        compiled=work.seen * machine.devices,
        unseen=work.unseen * machine.devices,
    )
    return dataclasses.replace(
        base,
        flops=flops,
        collectives=sent,
        operations=work.operations,
        unknown_loops=work.unknown_loops,
        roofline=roofline,
        projection=estimate.project(base, model, roofline.least, work.serial),
    )
