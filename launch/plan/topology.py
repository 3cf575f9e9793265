"""TPU topologies from libtpu, on a machine that has none.

Only this module touches libtpu, and only when a plan is asked for.
"""

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import re
import sys
from collections.abc import Iterator

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lsm.cost import CHIPS, Chip
from lsm.errors import ConfigError, LsmError, nearest

EXAMPLES = ("v4:4x4x4", "v5e:4x4", "v5p:8x8x8", "v6e:16x16", "tpu7x:4x4x4")
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
"""What makes one JAX device of a chip's two cores, as on real machines."""


class PlanError(LsmError):
    """What is asked for cannot be planned here."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as given, "v5e:4x4".
      slices: how many of it.
      chip: what it is made of.
      devices: of all slices.
      available: bytes of HBM that the compiler lets a program have on each device.
    """

    name: str
    slices: int
    chip: Chip
    devices: tuple[jax.Device, ...]
    available: int

    @property
    def chips(self) -> int:
        """Chips over all slices."""
        return len(self.devices) // self.chip.devices_per_chip


def load(name: str, slices: int = 1) -> Topology:
    """Returns the topology `name` ("v5e:4x4") times `slices`.

    Raises:
      ConfigError: there is no such chip or shape.
      PlanError: libtpu is not installed.
    """
    chip = check(name, slices)
    version()
    options = dict(_OPTIONS.get(chip.name, {}))
    if slices > 1:
        options["num_slices"] = slices
    jax.config.update("jax_platforms", "cpu")  # constants of the trace are made here
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # do not ask the cloud which machine this is
    os.environ["TPU_LOG_DIR"] = "disabled"  # else it leaves files in /tmp
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no TPU is taken, so none need be locked
    try:
        with _silent_stderr():
            devices = tuple(topologies.get_topology_desc(name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split()).removeprefix("INVALID_ARGUMENT: ")
        raise ConfigError(f"--topology: {name!r}: libtpu refuses it: {reason}") from error
    return Topology(name, slices, chip, devices, available(devices[0], chip))


def check(name: str, slices: int) -> Chip:
    """Returns the chip of a topology's name; raises ConfigError where it cannot be one."""
    tpus = {chip.name: chip for chip in CHIPS if chip.clock is not None}
    gpus = [chip.name for chip in CHIPS if chip.clock is None]
    examples = ", ".join(EXAMPLES)
    kind, colon, shape = name.partition(":")
    if kind not in tpus:
        raise ConfigError(
            f"--topology: there is no chip {kind!r}; there are {', '.join(tpus)}, as in "
            f"{examples}, and {', '.join(gpus)}, as in h100:8.{nearest(kind, [*tpus, *gpus])}"
        )
    chip = tpus[kind]
    dims = 2 if chip.links == 4 else 3
    if not colon or not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{dims - 1}}}", shape):
        raise ConfigError(
            f"--topology: {name!r} given; {kind} needs {dims} sizes, as in "
            f"{kind}:{'x'.join(['4'] * dims)}; other examples: {examples}."
        )
    most = 16 if chip.links == 4 and chip.name != "v3" else None
    if most and max(map(int, shape.split("x"))) > most:
        raise ConfigError(
            f"--topology: {name!r} given; a slice of {kind} is at most {most}x{most}; "
            "--slices=N joins several."
        )
    if slices < 1:
        raise ConfigError(f"--slices: {slices} given; it must be 1 or more.")
    return chip


def version() -> str:
    """Returns libtpu's version; raises PlanError where it is not installed."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise PlanError(
            "--topology: libtpu, which holds the TPU's compiler, is not installed: "
            "pip install 'lsm[plan]' (Linux; no TPU is needed)."
        ) from error


def available(device: jax.Device, chip: Chip) -> int:
    """Returns the bytes of HBM that the compiler gives a program.

    It does not tell them, except where it refuses: it is asked for a program that cannot fit.
    """
    mesh = jax.sharding.Mesh([device], ("all",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    huge = jax.ShapeDtypeStruct((1 << 40,), jax.numpy.int8)
    try:
        jax.jit(lambda x: x + 1, in_shardings=whole, out_shardings=whole).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"available HBM \(([\d.]+[KMGT]?)\)", str(error))
        if found:
            return bytes_of(found[1])
    return int(chip.memory)


def bytes_of(text: str) -> int:
    """Returns the bytes of the compiler's "15.75G" (binary units)."""
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?)i?B?", text).groups()
    return math.floor(float(number) * 2 ** (10 * " KMGT".index(unit or " ")))


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hides what libtpu's C++ writes to stderr while it looks for a TPU."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
