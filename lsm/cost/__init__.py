"""What a step needs, and what the accelerators can do at best."""

from lsm.cost.chips import CHIPS, Chip, chip_of
from lsm.cost.flops import (
    Flops,
    Window,
    convolution_flops,
    dot_flops,
    hardware_flops,
    model_flops,
)
from lsm.cost.links import collective_seconds

__all__ = [
    "CHIPS",
    "Chip",
    "Flops",
    "Window",
    "chip_of",
    "collective_seconds",
    "convolution_flops",
    "dot_flops",
    "hardware_flops",
    "model_flops",
]
