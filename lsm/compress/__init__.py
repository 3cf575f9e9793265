"""Trained models made smaller: what is left of a run is a run."""

from lsm.compress.structured import shrink

__all__ = ["shrink"]
