"""Smaller models, made of trained ones."""

from lsm.compress.quantise import quantise

__all__ = ["quantise"]
