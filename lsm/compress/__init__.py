"""Trained models made smaller: what is left of a run is a run."""

from lsm.compress.quantise import quantise
from lsm.compress.structured import shrink

__all__ = ["quantise", "shrink"]
