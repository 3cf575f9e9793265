"""Texts from a model that gives the next token, and keeps in a cache what it was given."""

from lsm.generate.beam import Beam, Branching, Found, beam_search

__all__ = ["Beam", "Branching", "Found", "beam_search"]
