"""What a plan says: frozen dataclasses that become JSON, and are shown by `launch.plan.sections`.

Bytes and seconds are those of one device and one step, unless a field says otherwise. Pairs of
numbers are the ends of a range, low to high.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from launch.plan.topology import Topology

SCHEMA = 2  # goes up when a field of `Plan` changes its meaning or goes away


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of HBM on each device, as the compiler lays them out."""

    parameters: int  # of the model
    optimizer_state: int  # moments, averages and the like
    other_state: int  # batch statistics and the step count
    batch: int  # one step's rows
    padding: int  # that the hardware's tiles add; less than 0 where not all of these is read
    results: int  # outputs that take no input's place
    temporaries: int  # activations, gradients, gathered weights: what lives during a step only
    code: int  # the program
    available: int  # what the compiler lets a program have; less than the chip's HBM
    capacity: int  # HBM of the device
    host: int = 0  # bytes in the host's memory, where something is offloaded

    @property
    def parts(self) -> dict[str, int]:
        """What adds up to the total, by name."""
        around = ("available", "capacity", "host")
        return {name: size for name, size in vars(self).items() if name not in around}

    @property
    def total(self) -> int:
        """Bytes that a step needs: arguments, results that take no argument's place, the rest."""
        return sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Refusal:
    """The compiler's own "no": the program does not fit."""

    program: str  # "init" or "step"; "state" where that alone is too large to compile for
    reason: str  # its message, in one line
    needed: int | None  # bytes on each device, to two decimals of a GiB; None where it names none
    available: int | None  # likewise, what there is
    largest: tuple[tuple[int, str], ...] = ()  # (bytes, shape) of the largest buffers that it lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Floating-point operations of one step over all devices."""

    model: float  # that the mathematics needs: what MFU is made of
    hardware: float  # with what rematerialisation computes again
    compiled: float  # products and convolutions in the compiled program, loops multiplied out
    custom_calls: float = 0.0  # of Pallas kernels: what `hardware` has and `compiled` has not


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of one kind, over one axis, of one size."""

    kind: str  # all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute
    axes: tuple[str, ...]  # mesh axes that its groups span; () where they follow none
    group: int  # devices in a group
    slices: int  # slices (of GPUs: nodes) that a group spans
    network: str  # ICI in a slice or DCN across; NVLink in a node or the network
    bytes: int  # of one: the gathered or the reduced whole, or what is sent
    times: int  # in a step
    overlapped: bool  # the compiler runs it beside other work
    seconds: float  # of all of them, by the ring formulas; an estimate

    @property
    def total(self) -> int:
        """Bytes of all of them in a step."""
        return self.bytes * self.times


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operations:
    """A kind of operation in the compiled step, loops multiplied out."""

    # "matmul", "elementwise" (other fusions), "copy", "collective", "custom call" (kernels),
    # "prefetch" (asynchronous copies, which run beside the rest) or "other"
    kind: str
    seconds: float  # cycles by the clock; without an estimate, bytes or FLOPs at the peak
    count: int  # how many run in a step
    flops: float = 0.0  # of products; of custom calls, what is not in the others
    bytes: float = 0.0  # read from and written to HBM
    cycles: int = 0  # the compiler's estimate, of those that carry one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of a step that each part of the machine needs at its peak."""

    compute: float  # hardware FLOPs at the peak rate
    memory: float  # bytes to and from HBM at its bandwidth
    interconnect: float  # collectives within a slice or node, by the ring formulas
    network: float  # collectives across

    @property
    def bound(self) -> str:
        """The part that needs longest."""
        return max(vars(self), key=vars(self).get)

    @property
    def least(self) -> float:
        """Seconds of that part: a step takes no less."""
        return max(vars(self).values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projection:
    """What the run will do, between an optimistic and a pessimistic end."""

    step_seconds: tuple[float, float]  # where everything overlaps, to where nothing does
    mfu: tuple[float, float]  # model FLOPs over peak FLOPs
    examples_per_second: tuple[float, float]  # over all devices
    tokens_per_second: tuple[float, float] | None  # likewise; None where the task has no tokens
    hours: tuple[float, float]  # of the whole run without evaluation and saving
    usd: tuple[float, float] | None  # chips x hours x price; None where no price is known


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What is planned: the experiment in figures."""

    name: str  # of the experiment
    config: str  # the file, with its argument
    overrides: Mapping[str, str]  # of its fields, {"a.b": "text"}
    mesh: Mapping[str, int]  # axis -> ways, in order
    parameters: int  # number of trainable values
    active_parameters: int  # of these, what a token meets; fewer where there are experts
    batch_size: int  # examples in a step over all devices
    accumulation: int  # micro-batches of a step
    tokens_per_example: int | None  # None where the task has no tokens; of the widest bucket
    steps: int  # length of the run
    buckets: bool = False  # whether batches of texts differ in width: all are planned as the widest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A training step on a machine that need not be there."""

    run: Workload  # what
    topology: Topology  # on what
    price: float | None  # USD for one chip and hour; None where unknown
    price_source: str  # "given", or whose list it is from
    # "compiled" by the machine's own compiler; "priced": by the TPU's for as many TPUs, with the
    # GPU's figures; "quick": without optimisation, to compare plans
    basis: Literal["compiled", "priced", "quick"]
    compile_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by program
    refusal: Refusal | None = None  # where there is one, all below is missing
    memory: Memory | None = None  # of a device
    flops: StepFlops | None = None  # of a step
    collectives: tuple[Collective, ...] = ()  # slowest first
    operations: tuple[Operations, ...] = ()  # by kind, slowest first
    unknown_loops: int = 0  # loops whose length could not be read; counted as one turn
    uncounted: tuple[str, ...] = ()  # operations whose FLOPs, and perhaps time, nobody knows
    roofline: Roofline | None = None  # the least that each part needs
    projection: Projection | None = None  # of speed, time and money

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
        shown = [field.name for field in dataclasses.fields(value) if field.repr]
        derived = [name for name, x in vars(type(value)).items() if isinstance(x, property)]
        return {name: _plain(getattr(value, name)) for name in (*shown, *derived)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
