"""Compiles an experiment's own program for a topology, and reads the plan out of what comes back.

Nothing is allocated and nothing runs: arguments are shapes with shardings.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from launch.plan import collectives, estimate
from launch.plan.hlo import Module
from launch.plan.report import Flops, Machine, Memory, Plan, Refusal, Run
from launch.plan.topology import Topology, bytes_of, version
from lsm.config import Experiment
from lsm.cost import hardware_flops
from lsm.durations import Horizon
from lsm.train import abstract_batch, build
from lsm.train.program import Program
from lsm.train.throughput import training_flops

_QUICK = {"optimization_level": 9}
"""O0 in XLA's numbers; jax 0.10 takes no name."""

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


def plan(request: Request, topology: Topology) -> Plan:
    """Returns the plan of an experiment on a topology.

    Raises:
      DataError: the shapes of the data are not known, and it is not there.
      MeshError: the mesh does not fit the devices, the batch or the parameters.
    """
    experiment = request.experiment
    batch, horizon = abstract_batch(experiment, request.data_dir)
    program = build(experiment, horizon, batch, devices=list(topology.devices))
    batch = program.abstract_batch
    base = Plan(
        run=run_of(request, program, batch, horizon),
        machine=machine_of(request, topology),
        compile_seconds={},
        versions={"jax": jax.__version__, "libtpu": version()},
    )
    seconds = {}
    try:
        seconds["init"] = _timed(_compile_quickly, program.init.lower())[1]
        lowered = program.step.lower(program.abstract_state, batch)
        compiled, seconds["step"] = _timed(lowered.compile)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refused = refusal("step" if "init" in seconds else "init", str(error))
        return dataclasses.replace(base, refusal=refused, compile_seconds=seconds)
    memory = memory_of(compiled, program, batch, topology)
    base = dataclasses.replace(base, memory=memory, compile_seconds=seconds)
    return _estimated(base, experiment, program, batch, compiled.as_text(), topology)


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


def run_of(request: Request, program: Program, batch: Mapping[str, Any], horizon: Horizon) -> Run:
    """Returns the experiment in figures."""
    experiment = request.experiment
    column = getattr(experiment.task, "tokens", None)
    return Run(
        name=experiment.name,
        config=request.config,
        overrides=dict(request.overrides),
        mesh=dict(program.mesh.shape),
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(program.abstract_state.params)),
        batch_size=experiment.train.batch_size,
        accumulation=experiment.train.accumulation,
        tokens_per_example=batch[column].shape[1] - 1 if column in batch else None,
        steps=horizon.steps,
    )


def machine_of(request: Request, topology: Topology) -> Machine:
    """Returns what is planned for, with what it costs."""
    chip, price = topology.chip, request.price
    source = "given" if price is not None else LIST_PRICE if chip.price else "unknown; give --price"
    return Machine(
        topology=topology.name,
        slices=topology.slices,
        chip=chip.name,
        chips=topology.chips,
        devices=len(topology.devices),
        peak_flops=chip.flops,
        price=chip.price if price is None else price,
        price_source=source,
    )


def memory_of(
    compiled: jax.stages.Compiled, program: Program, batch: Mapping[str, Any], topology: Topology
) -> Memory:
    """Returns the compiler's memory analysis, its arguments by what they are."""
    stats, state = compiled.memory_analysis(), program.abstract_state
    parts = {
        "parameters": local_bytes(state.params),
        "optimizer_state": local_bytes(state.opt_state),
        "other_state": local_bytes((state.step, state.model_state)),
        "batch": local_bytes(batch),
    }
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


def local_bytes(tree: Any) -> int:
    """Bytes of HBM that a tree of shapes with shardings takes on each device, unpadded."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != "pinned_host"
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


def _estimated(
    base: Plan,
    experiment: Experiment,
    program: Program,
    batch: Mapping[str, Any],
    text: str,
    topology: Topology,
) -> Plan:
    """Returns the plan with what the text of the compiled step adds."""
    chip, state, machine = topology.chip, program.abstract_state, base.machine
    module = Module.parse(text)
    weight = estimate.weight_of(module)
    found = collectives.find(module, machine.devices, weight)
    summary = collectives.summarise(found, program.mesh, chip)
    work = estimate.work_of(module, summary, chip)
    model = training_flops(experiment.task, state, batch)
    hardware = hardware_flops(program.step, state, batch).total
    compiled = work.total("flops") * machine.devices
    unseen = max(hardware - compiled, 0.0) if work.kernels else 0.0
    flops = Flops(model=model.total, hardware=hardware, compiled=compiled, unseen=unseen)
    work = estimate.with_kernels(work, unseen / machine.devices, chip)
    roofline = estimate.roofline_of(flops, work, summary, machine, chip)
    return dataclasses.replace(
        base,
        flops=flops,
        collectives=summary,
        operations=work.operations,
        unknown_loops=work.unknown_loops,
        roofline=roofline,
        projection=estimate.project(base.run, machine, flops.model, roofline.least, work.serial),
    )
