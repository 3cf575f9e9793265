"""Trained models made smaller, each a run again; `python -m lsm.compress` runs a chain of steps."""

from lsm.compress.chain import compress
from lsm.compress.links import Distil, Quantise, Shorten, Shrink, Tune
from lsm.compress.quantise import quantise
from lsm.compress.recipe import Derived, Link, Recipe
from lsm.compress.shorten import shorten
from lsm.compress.structured import shrink

__all__ = [
    "Derived",
    "Distil",
    "Link",
    "Quantise",
    "Recipe",
    "Shorten",
    "Shrink",
    "Tune",
    "compress",
    "quantise",
    "shorten",
    "shrink",
]
