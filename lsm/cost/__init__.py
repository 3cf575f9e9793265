"""What a step needs, and what the accelerators can do at best."""

from lsm.cost.chips import CHIPS, Chip, chip_of
from lsm.cost.flops import Flops, hardware_flops, model_flops

__all__ = ["CHIPS", "Chip", "Flops", "chip_of", "hardware_flops", "model_flops"]
