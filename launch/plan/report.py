"""What a plan says: frozen dataclasses that become JSON, and are shown by `launch.plan.sections`.

Bytes and seconds are those of one device and one step, unless a field says otherwise.
"""

import dataclasses
import json
from typing import Any, Literal

SCHEMA = 2
"""Goes up when a field of `Plan` changes its meaning or goes away."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of HBM on each device, as the compiler lays them out.

    Attributes:
      parameters: of the model.
      optimizer_state: moments, averages and the like.
      other_state: batch statistics and the step count.
      batch: one step's rows.
      padding: what tiles of the hardware add to these four; negative where the program does not
        read one of them.
      results: outputs that take no input's place.
      temporaries: activations, gradients, gathered weights: what lives during a step only.
      code: the program.
      available: what the compiler lets a program have; less than the chip's HBM.
      capacity: HBM of the device.
      host: bytes in the host's memory, where something is offloaded.
    """

    parameters: int
    optimizer_state: int
    other_state: int
    batch: int
    padding: int
    results: int
    temporaries: int
    code: int
    available: int
    capacity: int
    host: int = 0

    @property
    def arguments(self) -> int:
        """Bytes of what a step is given: the state and the batch."""
        state = self.parameters + self.optimizer_state + self.other_state
        return state + self.batch + self.padding

    @property
    def total(self) -> int:
        """Bytes that a step needs: arguments, results that take no argument's place, the rest."""
        return self.arguments + self.results + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Refusal:
    """The compiler's own "no": the program does not fit.

    Attributes:
      program: "init" or "step".
      reason: its message, in one line.
      needed: bytes on each device, to two decimals of a GiB; None where it names none.
      available: likewise, what there is.
      largest: (bytes, shape and origin) of the largest buffers that it lists.
    """

    program: str
    reason: str
    needed: int | None
    available: int | None
    largest: tuple[tuple[int, str], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Floating-point operations of one step over all devices.

    Attributes:
      model: that the mathematics needs; nothing computed again is counted. What MFU is made of.
      hardware: with what rematerialisation computes again.
      compiled: matrix products and convolutions in the compiled program, loops multiplied out.
      unseen: of custom calls (Pallas kernels): what `hardware` has and `compiled` has not. Causal
        attention counts in full, though a kernel leaves out half.
    """

    model: float
    hardware: float
    compiled: float
    unseen: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of one kind, over one axis, of one size.

    Attributes:
      kind: all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute.
      axes: mesh axes that its groups span; () where they follow none.
      group: devices in a group.
      slices: slices (of GPUs: nodes) that a group spans; several are joined by the slow network.
      network: what they go over: ICI in a slice or DCN across, NVLink in a node or the network.
      bytes: of one: the gathered or the reduced whole, or what is sent.
      times: in a step.
      overlapped: the compiler runs it beside other work.
      seconds: of all of them, by the ring formulas; an estimate.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    slices: int
    network: str
    bytes: int
    times: int
    overlapped: bool
    seconds: float

    @property
    def total(self) -> int:
        """Bytes of all of them in a step."""
        return self.bytes * self.times


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operations:
    """A kind of operation in the compiled step, loops multiplied out.

    Attributes:
      kind: "matmul", "elementwise" (other fusions), "copy", "collective", "custom call" (kernels),
        "prefetch" (asynchronous copies, which run beside the rest) or "other".
      count: how many run in a step.
      flops: of matrix products and convolutions; of custom calls, what is not in the others.
      bytes: read from and written to HBM.
      cycles: the compiler's estimate, of those that carry one.
      seconds: its cycles by the clock; for what carries no estimate, its bytes or FLOPs at the
        chip's peak, and for collectives the time of `Collective`.
    """

    kind: str
    count: int
    flops: float = 0.0
    bytes: float = 0.0
    cycles: int = 0
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of a step that each part of the machine needs at its peak.

    Attributes:
      compute: hardware FLOPs at the peak rate.
      memory: bytes to and from HBM at its bandwidth.
      interconnect: collectives within a slice (ICI), by the ring formulas.
      network: collectives across slices (DCN).
    """

    compute: float
    memory: float
    interconnect: float
    network: float = 0.0

    @property
    def bound(self) -> str:
        """The part that needs longest."""
        return max(vars(self).items(), key=lambda item: item[1])[0]

    @property
    def least(self) -> float:
        """Seconds of that part: a step takes no less."""
        return max(vars(self).values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projection:
    """What the run will do, between an optimistic and a pessimistic end.

    Attributes:
      step_seconds: everything overlaps (the longest of the roofline), to nothing does (the
        compiler's cycles plus every collective).
      mfu: model FLOPs over peak FLOPs, low to high.
      examples_per_second: over all devices, low to high.
      tokens_per_second: likewise; None where the task has no tokens.
      hours: of the whole run without evaluation and saving, low to high.
      usd: chips x hours x price, low to high; None where no price is known.
    """

    step_seconds: tuple[float, float]
    mfu: tuple[float, float]
    examples_per_second: tuple[float, float]
    tokens_per_second: tuple[float, float] | None
    hours: tuple[float, float]
    usd: tuple[float, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What is planned for.

    Attributes:
      topology: as given, "v5e:4x4".
      slices: of it, joined by the data-centre network.
      chip: its name, "v5e".
      chips: over all slices; what is paid for.
      devices: JAX devices over all slices.
      peak_flops: bfloat16 FLOP/s of a device.
      price: USD for one chip and hour; None where unknown.
      price_source: "given", or whose list it is from.
    """

    topology: str
    slices: int
    chip: str
    chips: int
    devices: int
    peak_flops: float
    price: float | None
    price_source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What is planned: the experiment in figures.

    Attributes:
      name: of the experiment.
      config: the file, with its argument.
      overrides: of its fields, {"a.b": "text"}.
      mesh: axis -> ways, in order.
      parameters: number of trainable values.
      batch_size: examples in a step over all devices.
      accumulation: micro-batches of a step.
      tokens_per_example: None where the task has no tokens.
      steps: length of the run.
    """

    name: str
    config: str
    overrides: dict[str, str]
    mesh: dict[str, int]
    parameters: int
    batch_size: int
    accumulation: int
    tokens_per_example: int | None
    steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A training step on a machine that need not be there.

    Attributes:
      run: what.
      machine: on what.
      basis: "compiled" by the machine's own compiler; "priced": by the TPU's for as many TPUs, with
        the GPU's figures; "quick": without optimisation, to compare plans.
      memory: None where the compiler refused.
      refusal: None where it did not.
      flops: of a step; None where the compiler refused, like all below.
      collectives: slowest first.
      operations: by kind, slowest first.
      unknown_loops: loops whose length could not be read; counted as one turn.
      roofline: the least that each part needs.
      projection: of speed, time and money.
      compile_seconds: of "init" and "step".
      versions: of jax and libtpu.
    """

    run: Workload
    machine: Machine
    basis: Literal["compiled", "priced", "quick"] = "compiled"
    memory: Memory | None = None
    refusal: Refusal | None = None
    flops: StepFlops | None = None
    collectives: tuple[Collective, ...] = ()
    operations: tuple[Operations, ...] = ()
    unknown_loops: int = 0
    roofline: Roofline | None = None
    projection: Projection | None = None
    compile_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether a step runs in the memory that there is."""
        return self.memory is not None and self.memory.total <= self.memory.available

    def as_json(self) -> str:
        """Returns the plan as indented JSON, with what the properties say."""
        return json.dumps({"schema": SCHEMA, **_plain(self)}, indent=1) + "\n"


def _plain(value: Any) -> Any:
    """Returns dataclasses as dicts, with their properties."""
    if dataclasses.is_dataclass(value):
        derived = [name for name, x in vars(type(value)).items() if isinstance(x, property)]
        return {name: _plain(getattr(value, name)) for name in (*vars(value), *derived)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
