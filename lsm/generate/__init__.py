"""Texts from a model that gives the next token, and keeps in a cache what it was given.

`decoding` and `sampling` are pure functions of arrays, compiled; `speculative` lets a
small model go ahead; `writing` makes texts of their tokens. `beam` searches.
"""

from lsm.generate.beam import Beam, Branching, Found, beam_search
from lsm.generate.decoding import Decoder, Drawn, State
from lsm.generate.sampling import GREEDY, Draws, Sampling
from lsm.generate.speculative import Speculative
from lsm.generate.writing import Piece, Stop, TextStream, Written, collected, write

__all__ = [
    "GREEDY",
    "Beam",
    "Branching",
    "Decoder",
    "Drawn",
    "Draws",
    "Found",
    "Piece",
    "Sampling",
    "Speculative",
    "State",
    "Stop",
    "TextStream",
    "Written",
    "beam_search",
    "collected",
    "write",
]
