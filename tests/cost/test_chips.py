"""The table of peaks, held against what the makers say of the hardware's parts."""

import pytest

from lsm.cost import CHIPS, Chip, chip_of

BY_NAME = {chip.name: chip for chip in CHIPS}


def test_known_and_unknown_devices():
    assert chip_of("TPU v5 lite").name == "v5e"
    assert chip_of("TPU v5").name == "v5p"
    assert chip_of("NVIDIA H100 80GB HBM3").name == "h100"
    assert chip_of("cpu") is None


def test_no_two_chips_share_a_name_or_a_kind():
    kinds = [kind for chip in CHIPS for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)
    assert len(BY_NAME) == len(CHIPS)


@pytest.mark.parametrize(
    "name, units, width, rows",
    [  # matrix units of one device, their width, rows that one takes in a cycle
        ("v3", 2, 128, 1),
        ("v4", 8, 128, 1),
        ("v5e", 4, 128, 1),
        ("v5p", 8, 128, 1),
        ("v6e", 2, 256, 2),
        ("tpu7x", 2, 256, 2),
    ],
)
def test_peak_is_multiply_adds_times_clock(name, units, width, rows):
    chip = BY_NAME[name]
    assert chip.flops == pytest.approx(2 * units * width**2 * rows * chip.clock, rel=0.01)


@pytest.mark.parametrize(
    "name, both_directions",  # bytes/s of one chip over all links, from Google's pages
    [("v5e", 400e9), ("v5p", 1200e9), ("v6e", 800e9), ("tpu7x", 1200e9)],
)
def test_links_carry_nine_tenths_of_their_nominal_rate(name, both_directions):
    chip = BY_NAME[name]
    assert 2 * chip.links * chip.link_bandwidth == pytest.approx(0.9 * both_directions)


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_units(chip: Chip):
    """A figure in GB instead of bytes, or in Gbit, is off by more than this."""
    assert 1e13 < chip.flops < 1e16
    assert 1e10 < chip.memory < 1e12
    assert 1e11 < chip.bandwidth < 1e13
    assert 1e9 < chip.dcn_bandwidth < chip.link_bandwidth < chip.bandwidth
    assert chip.devices_per_host % chip.devices_per_chip == 0
