"""Smaller models, made of trained ones; `python -m lsm.compress` runs a chain of such steps."""

from lsm.compress.chain import compress
from lsm.compress.links import Distil, Shorten, Tune
from lsm.compress.recipe import Derived, Link, Recipe
from lsm.compress.shorten import shorten

__all__ = ["Derived", "Distil", "Link", "Recipe", "Shorten", "Tune", "compress", "shorten"]
