"""TPU slices: what a topology such as "v5e:4x4" is called, and how many hosts it has.

Sources: Google Cloud's pages "Plan TPUs in GKE" (labels, topologies, chips of a machine), "TPU
versions" and "TPU software versions" (accelerator types, runtimes).
"""

import dataclasses
import math
import re

from launch.command import LaunchError
from lsm.errors import nearest


@dataclasses.dataclass(frozen=True)
class Generation:
    """One kind of TPU.

    Attributes:
      label: its value of the node label cloud.google.com/gke-tpu-accelerator.
      dimensions: of a topology.
      largest: chips of the largest slice.
      type: prefix of its accelerator types, "v5litepod" of "v5litepod-16"; None: only in GKE.
      cores: units that an accelerator type counts for a chip.
      runtime: image of its TPU VMs that is meant for JAX.
    """

    label: str
    dimensions: int
    largest: int
    type: str | None = None
    cores: int = 1
    runtime: str | None = None


GENERATIONS = {
    "v4": Generation("tpu-v4-podslice", 3, 4096, "v4", 2, "tpu-ubuntu2204-base"),
    "v5e": Generation("tpu-v5-lite-podslice", 2, 256, "v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": Generation("tpu-v5p-slice", 3, 6144, "v5p", 2, "v2-alpha-tpuv5"),
    "v6e": Generation("tpu-v6e-slice", 2, 256, "v6e", 1, "v2-alpha-tpuv6e"),
    "tpu7x": Generation("tpu7x", 3, 9216),
}
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


@dataclasses.dataclass(frozen=True)
class Slice:
    """A block of chips joined by their own network.

    Attributes:
      name: generation, "v5e".
      topology: chips along each axis, "4x4".
    """

    name: str
    topology: str

    @property
    def generation(self) -> Generation:
        """What is common to all slices of its kind."""
        return GENERATIONS[self.name]

    @property
    def chips(self) -> int:
        """How many chips it has."""
        return math.prod(map(int, self.topology.split("x")))

    @property
    def chips_per_host(self) -> int:
        """Chips of one machine: up to 8 where a flat slice is a single machine, else 4."""
        flat = self.generation.dimensions == 2
        return self.chips if flat and self.chips <= 8 else 4

    @property
    def hosts(self) -> int:
        """How many machines it has."""
        return self.chips // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """What the Cloud TPU API calls it, "v5litepod-16"; v4 and v5p are counted in cores.

        Raises:
          LaunchError: that API does not have this generation.
        """
        kind = self.generation
        if kind.type is None:
            raise LaunchError(
                f"--topology: {self.name} is only to be had in GKE; see launch.kubernetes."
            )
        return f"{kind.type}-{self.chips * kind.cores}"


def parse(text: str) -> Slice:
    """Returns the slice of "v5e:4x4".

    Raises:
      LaunchError: the generation or the topology does not exist; names the nearest.
    """
    name, _, topology = text.partition(":")
    if name not in GENERATIONS:
        raise LaunchError(
            f"--topology: {text!r} given; {', '.join(GENERATIONS)} and a shape, as in v5e:4x4, "
            f"are known.{nearest(name, GENERATIONS)}"
        )
    kind = GENERATIONS[name]
    if kind.dimensions == 2:
        if topology not in _FLAT:
            raise LaunchError(
                f"--topology: {text!r} given; {name} has {', '.join(_FLAT)}."
                f"{nearest(topology, _FLAT)}"
            )
        return Slice(name, topology)
    sides = [int(n) for n in topology.split("x")] if re.fullmatch(r"\d+x\d+x\d+", topology) else []
    whole = sides == sorted(sides) and all(n == 2 or (n and n % 4 == 0) for n in sides)
    if topology != "2x2x1" and not (sides and whole and math.prod(sides) <= kind.largest):
        raise LaunchError(
            f"--topology: {text!r} given; {name} is 2x2x1, or AxBxC with A <= B <= C, each 2 or a "
            f"multiple of 4, and at most {kind.largest} chips in all, as in {name}:4x4x8."
        )
    return Slice(name, topology)
