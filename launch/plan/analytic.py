"""A plan without a compiler: for GPUs, and to choose which plans are worth compiling.

Exact: bytes of parameters, optimiser state and batch on each device, from their shardings, and the
FLOPs. Estimated by `launch.plan.partition`: what else is alive, and what is sent. Assumed: the
share of the peak that products reach (`EFFICIENCY`).
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from launch.plan import collectives, estimate
from launch.plan.compile import Request, local_bytes, machine_of, run_of
from launch.plan.layouts import Layout, of_spec
from launch.plan.partition import Work, partition
from launch.plan.report import Collective, Flops, Memory, Operations, Plan, Roofline
from launch.plan.topology import Topology
from lsm.cost import CHIPS, Chip, hardware_flops
from lsm.errors import ConfigError, nearest
from lsm.train import abstract_batch, build
from lsm.train.program import Program
from lsm.train.throughput import training_flops

GPUS = tuple(chip.name for chip in CHIPS if chip.clock is None)
"""What `load` knows."""

EFFICIENCY = {"a100": (0.55, 0.75), "a100-40gb": (0.55, 0.75)}
"""Share of the peak that large bfloat16 products reach, low and high; `OTHERS` for other chips.

The middle of the hardware utilisation (HFU) that MosaicML measured over models of 1 to 70 billion
parameters on 8 to 64 GPUs, FSDP: 55-77 % on A100, 40-59 % on H100, whose peak is harder to feed
(github.com/mosaicml/llm-foundry, scripts/train/benchmarking/README.md).
"""
OTHERS = (0.40, 0.60)

PREALLOCATED = 0.75
"""Share of a GPU's memory that JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION says another."""


@dataclasses.dataclass(frozen=True)
class Device:
    """Stands in for a GPU in a mesh.

    Attributes:
      id: number of the GPU; 8 in a row share a node.
      device_kind: as JAX would name it.
      platform: likewise.
      process_index: number of its node.
    """

    id: int
    device_kind: str
    platform: str = "gpu"
    process_index: int = 0


def is_gpu(name: str) -> bool:
    """Whether a topology's name is of GPUs, such as "h100:8"."""
    return name.partition(":")[0] in GPUS


def load(name: str, slices: int = 1) -> Topology:
    """Returns the topology "h100:16": nodes of 8 with NVLink inside and the network between.

    Raises:
      ConfigError: there is no such GPU or number of them.
    """
    kind, _, number = name.partition(":")
    chip = next((chip for chip in CHIPS if chip.name == kind and chip.clock is None), None)
    if chip is None:
        raise ConfigError(
            f"--topology: there is no GPU {kind!r}; there are {', '.join(GPUS)}, as in h100:8."
            + nearest(kind, GPUS)
        )
    count = int(number) if re.fullmatch(r"[1-9]\d{0,5}", number) else 0
    node = chip.devices_per_host
    if not count or (count > node and count % node):
        raise ConfigError(
            f"--topology: {name!r} given; {kind} needs a number of GPUs, 1 to {node} or whole "
            f"nodes of {node}, as in {kind}:8, {kind}:64."
        )
    if slices != 1:
        raise ConfigError(f"--slices: {slices} given; GPUs have none: give their total number.")
    devices = tuple(Device(n, chip.kinds[0], process_index=n // node) for n in range(count))
    return Topology(name, 1, chip, devices, int(chip.memory * _share()))


def _share() -> float:
    try:
        return float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", PREALLOCATED))
    except ValueError:
        return PREALLOCATED


def plan(request: Request, topology: Topology, model: float | None = None) -> Plan:
    """Returns the analytic plan of an experiment on a topology, of GPUs or of TPUs.

    Args:
      request: what to plan.
      topology: on what.
      model: model FLOPs of a step, where they are known: the mesh does not change them.

    Raises:
      DataError: the shapes of the data are not known, and it is not there.
      MeshError: the mesh does not fit the devices, the batch or the parameters.
      ConfigError: the optimiser state is to be in the host's memory, and these are GPUs.
    """
    start = time.monotonic()
    experiment = request.experiment
    if experiment.mesh.offload and topology.chip.clock is None:
        raise ConfigError("mesh.offload: True given; the estimate for GPUs needs False.")
    batch, horizon = abstract_batch(experiment, request.data_dir)
    program = build(experiment, horizon, batch, devices=list(topology.devices))
    batch = program.abstract_batch
    work = work_of(program, batch, topology.devices[0].platform)
    state = program.abstract_state
    if model is None:
        model = training_flops(experiment.task, state, batch).total
    hardware = hardware_flops(program.step, state, batch).total
    run, machine = run_of(request, program, batch, horizon), machine_of(request, topology)
    sent = tuple(_collectives(work, program.mesh, topology.chip))
    memory = _memory(program, batch, work, topology)
    roofline = _roofline(hardware / machine.devices, memory, work, sent, topology.chip)
    fast, slow = _step_seconds(roofline, topology.chip)
    return Plan(
        run=run,
        machine=machine,
        basis="analytic",
        memory=memory,
        flops=Flops(model=model, hardware=hardware, compiled=hardware),
        collectives=sent,
        operations=_operations(hardware / machine.devices, memory, work, sent, topology.chip),
        roofline=roofline,
        projection=estimate.project(run, machine, model, fast, slow),
        compile_seconds={"estimate": time.monotonic() - start},
        versions={"jax": jax.__version__},
    )


def efficiency(chip: Chip) -> tuple[float, float]:
    """Returns the share of the peak that products are assumed to reach, low and high."""
    return EFFICIENCY.get(chip.name, OTHERS)


def work_of(program: Program, batch: Mapping[str, Any], platform: str) -> Work:
    """Returns what a device does in a step, from the step's jaxpr."""
    state = program.abstract_state
    closed = jax.make_jaxpr(program.step)(state, batch)
    (call,) = (eqn for eqn in closed.jaxpr.eqns if eqn.primitive.name in ("jit", "pjit"))
    inner = call.params["jaxpr"]
    leaves = jax.tree.leaves((state, batch))
    of_inputs = dict(zip(closed.jaxpr.invars, map(_layout, leaves), strict=True))
    layouts = [
        ((),) * var.aval.ndim if isinstance(var, Literal) else of_inputs.get(var, _whole(var))
        for var in call.invars
    ]
    params = {leaf.shape: _layout(leaf) for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1}
    for shape, layout in list(params.items()):
        if len(shape) > 2 and not layout[0]:  # one layer of a stack
            shape, layout = shape[1:], layout[1:]
            params.setdefault(shape, layout)
        params.setdefault(shape[::-1], layout[::-1])  # a gradient before it is transposed
    donated = range(len(jax.tree.leaves(state)))
    return partition(inner, layouts, program.mesh.shape, params, platform, donated)


def _whole(var) -> Layout:
    return ((),) * var.aval.ndim


def _layout(leaf: jax.ShapeDtypeStruct) -> Layout:
    return of_spec(leaf.sharding.spec, len(leaf.shape), leaf.sharding.mesh.shape)


def _memory(program: Program, batch: Mapping[str, Any], work: Work, topology: Topology) -> Memory:
    state = program.abstract_state
    return Memory(
        parameters=local_bytes(state.params),
        optimizer_state=local_bytes(state.opt_state),
        other_state=local_bytes((state.step, state.model_state)),
        batch=local_bytes(batch),
        padding=0,
        results=0,
        temporaries=work.peak,
        code=0,
        available=topology.available,
        capacity=int(topology.chip.memory),
        host=work.host,
    )


def _collectives(work: Work, mesh: jax.sharding.Mesh, chip: Chip) -> list[Collective]:
    """What is sent, by kind, axes and size, slowest first."""
    rows = []
    for (kind, axes, size), times in work.collectives.items():
        group = math.prod(mesh.shape[axis] for axis in axes)
        seconds, homes = _seconds(kind, size, axes, mesh, chip)
        rows.append(
            Collective(
                kind=kind,
                axes=axes,
                group=group,
                slices=homes,
                bytes=size,
                times=times,
                overlapped=kind in ("all-gather", "reduce-scatter"),
                seconds=times * seconds,
                networks=("ICI", "DCN") if chip.clock else ("NVLink", "network"),
            )
        )
    return sorted(rows, key=lambda row: (-row.seconds, row.kind, row.axes, row.bytes))


def _seconds(
    kind: str, size: int, axes: tuple[str, ...], mesh: jax.sharding.Mesh, chip: Chip
) -> tuple[float, int]:
    """Returns the time of one collective, and over how many nodes or slices it goes."""
    ids = np.arange(mesh.devices.size).reshape(mesh.devices.shape)
    group = ids[tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)].reshape(-1)
    if chip.clock is not None:
        _, slices = collectives.spanned([tuple(group)], mesh)
        torus = collectives.torus_of(group, mesh, chip)
        return collectives.seconds(kind, size, len(group), slices, torus, chip), slices
    nodes = len(np.unique(group // chip.devices_per_host))
    if kind == "all-to-all":  # a switch: all pairs at once
        share = (len(group) - 1) / len(group)
        return size * share / (chip.dcn_bandwidth if nodes > 1 else chip.link_bandwidth), nodes
    torus = ((len(group) // nodes, True),)
    return collectives.seconds(kind, size, len(group), nodes, torus, chip), nodes


def _roofline(
    flops: float, memory: Memory, work: Work, sent: tuple[Collective, ...], chip: Chip
) -> Roofline:
    far = sum(one.seconds for one in sent if one.slices > 1)
    return Roofline(
        compute=flops / chip.flops,
        memory=(work.moved + _updated(memory)) / chip.bandwidth,
        interconnect=sum(one.seconds for one in sent) - far,
        network=far,
    )


def _updated(memory: Memory) -> int:
    """Bytes that the optimiser reads and writes."""
    return 2 * (memory.parameters + memory.optimizer_state)


def _step_seconds(roofline: Roofline, chip: Chip) -> tuple[float, float]:
    """Returns the time of a step: products efficient and all hidden behind the longest part, to
    products inefficient and nothing that is sent hidden."""
    low, high = efficiency(chip)
    sent = roofline.interconnect + roofline.network
    fast = max(roofline.compute / high, roofline.memory, roofline.interconnect, roofline.network)
    return fast, max(roofline.compute / low, roofline.memory) + sent


def _operations(
    flops: float, memory: Memory, work: Work, sent: tuple[Collective, ...], chip: Chip
) -> tuple[Operations, ...]:
    """Products at the low efficiency or at the memory's speed, the update, and what is sent."""
    products = max(flops / chip.flops / efficiency(chip)[0], work.moved / chip.bandwidth)
    updated = _updated(memory)

    def row(kind: str, count: int, flops: float, size: float, seconds: float) -> Operations:
        return Operations(
            kind=kind,
            count=count,
            flops=flops,
            bytes=size,
            cycles=0,
            unestimated=count,
            seconds=seconds,
        )

    rows = [
        row("matmul", work.products, flops, work.moved, products),
        row("elementwise", 1, 0.0, updated, updated / chip.bandwidth),
    ]
    if sent:
        times = sum(one.times for one in sent)
        rows.append(row("collective", times, 0.0, 0.0, sum(one.seconds for one in sent)))
    return tuple(sorted(rows, key=lambda one: (-one.seconds, one.kind)))
