"""What the accelerators can do at best: the peaks that a run is measured against.

TPUs, in the order of preference: Google Cloud's pages on v3, v4, v5e, v5p, v6e and TPU7x for
FLOP/s, memory, its bandwidth and the number of links; Austin et al., "How to Scale Your Model"
(2025), chapter 2, for what one link and the data-centre network carry (9e10 bytes/s a link where
the page's total of 1,200 GB/s over 6 links in 2 directions says 1e11). Clocks follow from the peak:
a v5e has 4 units of 128 x 128 multiply-adds, so 1.97e14 / (2 * 4 * 128 ** 2) = 1.5e9 Hz; units of
256 x 256 (v6e, TPU7x) do two rows a cycle.

GPUs: NVIDIA's data sheets, dense rates without sparsity; NVLink in one direction, which is half of
what the sheets print; one network card of the usual node (8 GPUs) a GPU.

Prices are Google's list for one chip and hour, on demand, in its cheapest region, as of 2025: what
one pays differs by region, commitment and year. GPU prices differ by a factor of three between
clouds, so there is none.
"""

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    A JAX device is a whole chip, except on v3 and TPU7x, where it is one of two cores.

    Attributes:
      name: as a topology is written, "v5e" of "v5e:4x4".
      kinds: what `jax.Device.device_kind` says.
      flops: peak dense bfloat16 FLOP/s of one device.
      memory: bytes of HBM of one device.
      bandwidth: bytes/s between a device and its HBM.
      links: links of one chip: 4 in a 2-D torus, 6 in a 3-D one, 1 to an NVLink switch.
      link_bandwidth: bytes/s over one link in one direction.
      dcn_bandwidth: bytes/s of one chip to another slice or node, in one direction.
      devices_per_host: JAX devices of a full host.
      devices_per_chip: JAX devices that share a chip.
      clock: Hz of the TPU's core, to turn a compiler's cycles into seconds; None for GPUs.
      price: USD for one chip and hour, see above; None where not known.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: float
    bandwidth: float
    links: int
    link_bandwidth: float
    dcn_bandwidth: float
    devices_per_host: int
    devices_per_chip: int = 1
    clock: float | None = None
    price: float | None = None


def _gpu(
    name: str,
    *kinds: str,
    flops: float,
    memory: float,
    bandwidth: float,
    nvlink: float,
    network: float,
) -> Chip:
    return Chip(
        name=name,
        kinds=kinds,
        flops=flops,
        memory=memory,
        bandwidth=bandwidth,
        links=1,
        link_bandwidth=nvlink,
        dcn_bandwidth=network,
        devices_per_host=8,
    )


CHIPS: tuple[Chip, ...] = (
    Chip(
        name="v3",
        kinds=("TPU v3",),
        flops=6.15e13,
        memory=16 * _GIB,
        bandwidth=4.5e11,
        links=4,
        link_bandwidth=1e11,
        dcn_bandwidth=6.25e9,
        devices_per_host=8,
        devices_per_chip=2,
        clock=0.94e9,
    ),
    Chip(
        name="v4",
        kinds=("TPU v4",),
        flops=2.75e14,
        memory=32 * _GIB,
        bandwidth=1.2e12,
        links=6,
        link_bandwidth=4.5e10,
        dcn_bandwidth=6.25e9,
        devices_per_host=4,
        clock=1.05e9,
        price=3.22,
    ),
    Chip(
        name="v5e",
        kinds=("TPU v5 lite", "TPU v5e"),
        flops=1.97e14,
        memory=16 * _GIB,
        bandwidth=8.19e11,
        links=4,
        link_bandwidth=4.5e10,
        dcn_bandwidth=3.125e9,
        devices_per_host=8,
        clock=1.5e9,
        price=1.20,
    ),
    Chip(
        name="v5p",
        kinds=("TPU v5", "TPU v5p"),
        flops=4.59e14,
        memory=96 * _GIB,
        bandwidth=2.765e12,
        links=6,
        link_bandwidth=9e10,
        dcn_bandwidth=6.25e9,
        devices_per_host=4,
        clock=1.75e9,
        price=4.20,
    ),
    Chip(
        name="v6e",
        kinds=("TPU v6 lite", "TPU v6e"),
        flops=9.18e14,
        memory=32 * _GIB,
        bandwidth=1.638e12,
        links=4,
        link_bandwidth=9e10,
        dcn_bandwidth=1.25e10,
        devices_per_host=8,
        clock=1.75e9,
        price=2.70,
    ),
    Chip(
        name="tpu7x",
        kinds=("TPU7x",),
        flops=2.307e15 / 2,
        memory=96 * _GIB,
        bandwidth=7.38e12 / 2,
        links=6,
        link_bandwidth=9e10,
        dcn_bandwidth=1.25e10,
        devices_per_host=8,
        devices_per_chip=2,
        clock=2.2e9,
    ),
    _gpu(
        "a100-40gb",
        "NVIDIA A100-SXM4-40GB",
        flops=3.12e14,
        memory=40 * _GIB,
        bandwidth=1.555e12,
        nvlink=3e11,
        network=2.5e10,
    ),
    _gpu(
        "a100",
        "NVIDIA A100-SXM4-80GB",
        flops=3.12e14,
        memory=80 * _GIB,
        bandwidth=2.039e12,
        nvlink=3e11,
        network=2.5e10,
    ),
    _gpu(
        "h100",
        "NVIDIA H100 80GB HBM3",
        flops=9.89e14,
        memory=80 * _GIB,
        bandwidth=3.35e12,
        nvlink=4.5e11,
        network=5e10,
    ),
    _gpu(
        "h200",
        "NVIDIA H200",
        flops=9.89e14,
        memory=141 * _GIB,
        bandwidth=4.8e12,
        nvlink=4.5e11,
        network=5e10,
    ),
    _gpu(
        "b200",
        "NVIDIA B200",
        flops=2.25e15,
        memory=180 * _GIB,
        bandwidth=8e12,
        nvlink=9e11,
        network=5e10,
    ),
)
"""The chips that lsm knows, oldest first."""


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a `jax.Device.device_kind`, or None where its peak is not known.

    A CPU has no published peak that its clock, its cores' sharing and its vector width let one
    reach, so there is none for "cpu".
    """
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)
