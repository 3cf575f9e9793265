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

__all__ = [
    "CHIPS",
    "Chip",
    "Flops",
    "Window",
    "chip_of",
    "convolution_flops",
    "dot_flops",
    "hardware_flops",
    "model_flops",
]
