"""What is planned for: TPU topologies from libtpu, on a machine that has none, and GPUs by number.

Only this module touches libtpu, and only when a plan is asked for.
"""

import dataclasses
import importlib.metadata
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from launch.command import LaunchError
from launch.slices import GENERATIONS, parse
from lsm.cost import CHIPS, Chip
from lsm.cpu.libtpu import ask_for_plans
from lsm.errors import ConfigError, LsmError, nearest
from lsm.files import silent_stderr

EXAMPLES = ("v4:4x4x4", "v5e:4x4", "v5p:8x8x8", "v6e:16x16", "tpu7x:4x4x4")
_CHIPS = {chip.name: chip for chip in CHIPS}
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}  # one device of two cores, as on real machines
STAND_IN = "v5p"  # what programs for GPUs are compiled for: one device a chip, and most memory
_SHARES = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"  # the first counts
_DEEPEST = 1024  # length of the longest slice that libtpu makes
_MOST = 2**17  # chips of a plan: more than any machine has


class PlanError(LsmError):
    """What is asked for cannot be planned here."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Stands for a GPU in a mesh."""

    id: int
    node: int  # number of the node that it shares NVLink with
    platform: str = "gpu"  # this and the next as JAX has them
    device_kind: str = "GPU"
    process_index: int = 0


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to plan for."""

    name: str  # as given, "v5e:4x4" or "h100:8"
    slices: int  # how many of it
    chip: Chip  # what it is made of, whose figures give times
    devices: tuple[Any, ...] = dataclasses.field(repr=False)  # of all slices; `Gpu`s, or TPUs
    compiled_for: tuple[jax.Device, ...] = dataclasses.field(repr=False)  # the same, or stand-ins
    lowered_for: str  # platform whose form of the program is compiled: on "cuda" without kernels
    available: int  # bytes of HBM that a program may have on each device
    versions: Mapping[str, str]  # of jax and libtpu

    @property
    def size(self) -> int:
        """Number of JAX devices over all slices."""
        return len(self.devices)

    @property
    def chips(self) -> int:
        """Number of chips, which is what is paid for."""
        return self.size // self.chip.devices_per_chip

    @property
    def gpus(self) -> bool:
        """Whether it is of GPUs, for which TPUs stand in."""
        return self.chip.clock is None


def load(name: str, slices: int = 1) -> Topology:
    """Returns the topology `name` ("v5e:4x4", "h100:16") times `slices`.

    GPUs come in nodes of 8 with NVLink inside and the network between.

    Raises:
      ConfigError: there is no such chip or shape.
      PlanError: libtpu is not installed.
    """
    chip, sizes = check(name, slices)
    try:
        versions = {"jax": jax.__version__, "libtpu": importlib.metadata.version("libtpu")}
    except importlib.metadata.PackageNotFoundError as error:
        raise PlanError(
            "--topology: libtpu, which holds the TPU's compiler, is not installed: "
            "pip install 'lsm[plan]' (Linux; no TPU is needed)."
        ) from error
    ask_for_plans()
    if chip.clock:
        tpus = _tpus(name, slices, chip)
        return Topology(name, slices, chip, tpus, tpus, "tpu", available(tpus[0], chip), versions)
    gpus = tuple(Gpu(n, n // chip.devices_per_host) for n in range(sizes[0]))
    tpus = _stand_ins(len(gpus))
    room = min(int(chip.memory * _share()), available(tpus[0], _CHIPS[STAND_IN]))
    return Topology(name, 1, chip, gpus, tpus, "cuda", room, versions)


def _share() -> float:
    """Returns what JAX takes of a GPU's memory: three quarters, unless it is told."""
    name = next((name for name in _SHARES if os.environ.get(name)), None)
    text = os.environ[name] if name else "0.75"
    if not re.fullmatch(r"\d*\.?\d+", text) or not 0 < float(text) <= 1:
        raise ConfigError(f"{name}: {text!r} given; a number above 0, at most 1, is needed.")
    return float(text)


def _stand_ins(count: int) -> tuple[jax.Device, ...]:
    """Returns so many TPUs: a long slice, or a line out of one."""
    side = 4 if count % 64 == 0 else 2
    while count > _DEEPEST * side**2 and count % (2 * side) ** 2 == 0:
        side *= 2
    line = count % side**2 != 0
    depth = count if line else count // side**2
    if depth > _DEEPEST:
        raise ConfigError(
            f"--topology: {count} GPUs given; above {4 * _DEEPEST} a multiple of 16 is needed, "
            f"above {16 * _DEEPEST} of 64, above {64 * _DEEPEST} of 256: no TPU slice to compile "
            "for is as long otherwise."
        )
    tpus = _tpus(f"{STAND_IN}:{side}x{side}x{depth}", 1, _CHIPS[STAND_IN])
    return tuple(one for one in tpus if not line or one.coords[:2] == [0, 0])


def _tpus(name: str, slices: int, chip: Chip) -> tuple[jax.Device, ...]:
    options = _OPTIONS.get(chip.name, {}) | ({"num_slices": slices} if slices > 1 else {})
    try:
        with silent_stderr():  # its C++ tells there of looking for a TPU
            return tuple(topologies.get_topology_desc(name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split()).removeprefix("INVALID_ARGUMENT: ")
        raise ConfigError(f"--topology: {name!r}: libtpu refuses it: {reason}") from error


def check(name: str, slices: int) -> tuple[Chip, tuple[int, ...]]:
    """Returns the chip and the shape; raises ConfigError where it cannot be one."""
    kind, _, shape = name.partition(":")
    if kind not in _CHIPS:
        tpus, gpus = ([c.name for c in CHIPS if bool(c.clock) is tpu] for tpu in (True, False))
        raise ConfigError(
            f"--topology: there is no chip {kind!r}; there are {', '.join(tpus)}, as in "
            f"{', '.join(EXAMPLES)}, and {', '.join(gpus)}, as in h100:8."
            + nearest(kind, list(_CHIPS))
        )
    chip, whole = _CHIPS[kind], re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*", shape)
    sizes, node = tuple(map(int, shape.split("x"))) if whole else (), chip.devices_per_host
    if chip.clock:
        dims, form = (2, "4x4") if chip.links == 4 else (3, "4x4x4")
        wrong = len(sizes) != dims
        needs = f"{dims} sizes, as in {kind}:{form}; other examples: {', '.join(EXAMPLES)}"
    else:
        wrong = len(sizes) != 1 or (sizes[0] > node and sizes[0] % node)
        needs = f"a number of GPUs, 1 to {node} or whole nodes of {node}, as in {kind}:8, {kind}:64"
    if wrong:
        raise ConfigError(f"--topology: {name!r} given; {kind} needs {needs}.")
    if not chip.clock and slices > 1:
        raise ConfigError(f"--slices: {slices} given; GPUs have none: give their total number.")
    if kind in GENERATIONS:
        try:
            parse(name)
        except LaunchError as error:
            raise ConfigError(f"{error} --slices=N joins several.") from error
    elif chip.clock and max(sizes) > 32:
        raise ConfigError(f"--topology: {name!r} given; a slice of {kind} is at most 32x32.")
    if (size := math.prod(sizes) * slices) > _MOST:
        raise ConfigError(
            f"--topology: {size:,} chips given in {slices:,} slices; at most {_MOST:,} are planned."
        )
    return chip, sizes


def available(device: jax.Device, chip: Chip) -> int:
    """Returns the bytes of HBM that the compiler gives a program.

    It does not tell them, except where it refuses: it is asked for a program that cannot fit.
    """
    huge = jax.ShapeDtypeStruct((1 << 40,), jax.numpy.int8, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        if found := re.search(r"available HBM \(([\d.]+[KMGT]?)\)", str(error)):
            return bytes_of(found[1])
    return int(chip.memory)


def bytes_of(text: str) -> int:
    """Returns the bytes of the compiler's "15.75G" (binary units)."""
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?)i?B?", text).groups()
    return math.floor(float(number) * 2 ** (10 * " KMGT".index(unit or " ")))
