"""A plan from XLA's partitioner alone: for GPUs, and to choose which plans are worth compiling.

The program is lowered for the machine's own platform, with the kernels that it has there, and
partitioned for as many simulated CPU devices: what every device does, and what is sent, are XLA's.
Exact besides: bytes of parameters, optimiser state and batch, and FLOPs. Estimated: which bytes
are alive at once (`launch.plan.liveness`), and that collectives are moved as XLA does behind the
partitioner (`sent`). Assumed: the share of the peak that products reach (`EFFICIENCY`).
"""

import dataclasses
import math
import pathlib
import tempfile
import time
from collections.abc import Sequence

import jax

from launch.plan import collectives, costs, estimate, liveness
from launch.plan.hlo import Computation, Instruction, Module
from launch.plan.loops import executed
from launch.plan.report import Collective, Memory, Operations, Plan, Roofline, StepFlops
from launch.plan.request import Request, Shaped, unanswered
from launch.plan.topology import PlanError, Topology
from lsm.cost import Chip, hardware_flops
from lsm.errors import ConfigError
from lsm.mesh import BATCH_AXES, make_mesh
from lsm.train.throughput import training_flops

EFFICIENCY = {"a100": (0.55, 0.75), "a100-40gb": (0.55, 0.75)}
"""Share of the peak that large bfloat16 products reach, low and high; `OTHERS` for other chips.

The middle of the hardware utilisation (HFU) that MosaicML measured over models of 1 to 70 billion
parameters on 8 to 64 GPUs, FSDP: 55-77 % on A100, 40-59 % on H100, whose peak is harder to feed
(github.com/mosaicml/llm-foundry, scripts/train/benchmarking/README.md).
"""
OTHERS = (0.40, 0.60)

SMALL = 2**16
"""Bytes from which on a collective counts: smaller ones are combined into others."""

_PASSING = frozenset(
    (
        "bitcast", "convert", "copy", "reduce-precision", "reshape", "transpose",
    )
)  # fmt: skip
"""What may stand between a collective and what becomes of its result."""


def plan(request: Request, topology: Topology, model: float | None = None) -> Plan:
    """Returns the estimated plan of an experiment on a topology, of GPUs or of TPUs.

    Args:
      request: what to plan.
      topology: on what.
      model: model FLOPs of a step, where they are known: the mesh does not change them.

    Raises:
      DataError: the shapes of the data are not known, and it is not there.
      MeshError: the mesh does not fit the devices, the batch or the parameters.
      ConfigError: the optimiser state is to be in the host's memory, and these are GPUs.
      PlanError: there are too few simulated devices.
    """
    start, experiment, chip = time.monotonic(), request.experiment, topology.chip
    if experiment.mesh.offload and topology.gpus:
        raise ConfigError("mesh.offload: True given; the estimate for GPUs needs False.")
    mesh = make_mesh(experiment.mesh, topology.devices)
    platform = "cuda" if topology.gpus else "tpu"
    shaped = Shaped.of(request, _stand_ins(mesh.size), platform)
    base = unanswered(request, topology, shaped)
    whole, module = partition(shaped, platform)
    found = collectives.summarise(sent(module, mesh.size), mesh, chip)
    memory = _memory(shaped, whole, module, topology)
    if model is None:
        model = training_flops(experiment.task, *shaped.arguments).total
    hardware = hardware_flops(shaped.program.step, *shaped.arguments).total
    products, seen = _products(module, hardware / mesh.size, chip)
    flops = StepFlops(
        model=model,
        hardware=hardware,
        compiled=seen * mesh.size,
        unseen=0.0 if topology.gpus else max(hardware - seen * mesh.size, 0.0),
    )
    updated = _updated(memory, chip)
    moved = products.bytes + updated.bytes
    roofline = estimate.roofline_of(hardware / mesh.size / chip.flops, moved, found, chip)
    operations = [products, updated, *_sums(found)]
    return dataclasses.replace(
        base,
        basis="analytic",
        memory=memory,
        flops=flops,
        collectives=found,
        operations=tuple(sorted(operations, key=lambda one: (-one.seconds, one.kind))),
        roofline=roofline,
        projection=estimate.project(base, model, *_step_seconds(roofline, chip)),
        compile_seconds={"estimate": time.monotonic() - start},
    )


def efficiency(chip: Chip) -> tuple[float, float]:
    """Returns the share of the peak that products are assumed to reach, low and high."""
    return EFFICIENCY.get(chip.name, OTHERS)


def _stand_ins(count: int) -> Sequence[jax.Device]:
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise PlanError(
            f"--topology: {count} devices are simulated on the CPU, and JAX made {len(devices)}: "
            f"set JAX_NUM_CPU_DEVICES={count}, or load the topology before JAX's first use."
        )
    return devices[:count]


def partition(shaped: Shaped, platform: str) -> tuple[Module, Module]:
    """Returns a step as it goes into XLA for a platform, and as each device's part of it."""
    lowered = shaped.program.step.trace(*shaped.arguments).lower(lowering_platforms=(platform,))
    refused: Exception | None = None
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"}
        try:
            lowered.compile(compiler_options={**options, "xla_backend_optimization_level": 0})
        except jax.errors.JaxRuntimeError as error:  # of kernels for another platform, behind
            refused = error  # the partitioner
        texts = [
            [path.read_text() for path in pathlib.Path(folder).glob(f"*jit_step.{name}")]
            for name in ("before_optimizations.txt", "*after_spmd-partitioning*")
        ]
    alone = shaped.program.mesh.size == 1  # a device alone has the whole program
    if not texts[0 if alone else 1]:
        cached = "it came from a cache; unset JAX_COMPILATION_CACHE_DIR."
        raise PlanError(f"--topology: XLA did not partition the program: {refused or cached}")
    return Module.parse(texts[0][0]), Module.parse(texts[0 if alone else 1][0])


def sent(module: Module, devices: int) -> list[collectives.Found]:
    """Returns the collectives of a partitioned module, as what follows the partitioner leaves them.

    A cast to fewer bytes goes before them; an all-reduce of which each device keeps a part is a
    reduce-scatter; one that a loop only adds up runs once, behind the loop.
    """
    found, outside = [], {}
    for scope, one, times, _ in executed(module, costs.weight_of(module)):
        if one.op == "while":
            outside[one.attribute("body")] = times
        kind = costs.kind_of_collective(one.op)
        if kind is None:
            continue
        one_of = collectives.replica_groups(one.text, devices)
        size = costs.operand_bytes(scope, one) * (len(one_of[0]) if kind == "all-gather" else 1)
        if casts := liveness.narrowed(scope, one):
            size = size * casts[0].arrays[0].bytes // one.arrays[0].bytes
        if kind == "all-reduce":
            if _sliced(scope, one):
                kind = "reduce-scatter"
            elif added := _added(scope, one):
                times, size = outside.get(scope.name, times), added.arrays[0].bytes
        if size >= SMALL:
            overlapped = kind in ("all-gather", "reduce-scatter")
            found.append(collectives.Found(kind, size, one_of, overlapped, times))
    return found


def _sliced(scope: Computation, one: Instruction) -> bool:
    users = scope.users[one.name]
    return bool(users) and all(
        user.op == "dynamic-slice" or (user.op in _PASSING and _sliced(scope, user))
        for user in users
    )


def _added(scope: Computation, one: Instruction) -> Instruction | None:
    """Returns the sum with a loop's carry that alone reads `one`."""
    while len(scope.users[one.name]) == 1:
        (one,) = scope.users[one.name]
        if one.op == "add":
            carried = any(scope[name].op == "get-tuple-element" for name in one.operands)
            return one if carried and scope.root in scope.users[one.name] else None
        if one.op not in _PASSING:
            break
    return None


def _memory(shaped: Shaped, whole: Module, module: Module, topology: Topology) -> Memory:
    host = _host_bytes(whole) // math.prod(
        shaped.program.mesh.shape[axis] for axis in (*BATCH_AXES, "sequence")
    )
    return Memory(
        **shaped.local_bytes,
        padding=0,
        results=0,
        temporaries=max(liveness.peak(module) - host, 0),
        code=0,
        available=topology.available,
        capacity=int(topology.chip.memory),
        host=host,
    )


def _host_bytes(whole: Module) -> int:
    """Bytes over all devices of activations that wait in the host's memory."""
    return sum(
        times * one.arrays[0].bytes
        for _, one, times, _ in executed(whole)
        if "annotate_device_placement" in one.text and "pinned_host" in one.text
    )


def _products(module: Module, flops: float, chip: Chip) -> tuple[Operations, float]:
    """Products, lookups and kernels, at the low efficiency or at the memory's speed.

    Also returns the FLOPs of the products alone.
    """
    count, moved, seen = 0, 0.0, 0.0
    for scope, one, times, _ in executed(module, costs.weight_of(module)):
        if liveness.heavy(scope, one):
            moved += times * costs.traffic(module, scope, one)
            more = costs.flops(module, scope, one)
            seen, count = seen + times * more, count + times * bool(more)
    seconds = max(flops / chip.flops / efficiency(chip)[0], moved / chip.bandwidth)
    row = {"flops": flops, "bytes": moved, "unestimated": count, "seconds": seconds}
    return Operations(kind="matmul", count=count, **row), seen


def _updated(memory: Memory, chip: Chip) -> Operations:
    """What the optimiser reads and writes."""
    moved = 2.0 * (memory.parameters + memory.optimizer_state)
    seconds = moved / chip.bandwidth
    return Operations(kind="elementwise", count=1, bytes=moved, unestimated=1, seconds=seconds)


def _sums(found: Sequence[Collective]) -> list[Operations]:
    times, seconds = sum(one.times for one in found), sum(one.seconds for one in found)
    row = Operations(kind="collective", count=times, unestimated=times, seconds=seconds)
    return [row] if found else []


def _step_seconds(roofline: Roofline, chip: Chip) -> tuple[float, float]:
    """Returns the time of a step: products efficient and all hidden behind the longest part, to
    products inefficient and nothing that is sent hidden."""
    low, high = efficiency(chip)
    sent = roofline.interconnect + roofline.network
    fast = max(roofline.compute / high, roofline.memory, roofline.interconnect, roofline.network)
    return fast, max(roofline.compute / low, roofline.memory) + sent
