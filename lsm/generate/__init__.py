"""Texts from a model that gives the next token, and keeps in a cache what it was given.

`decoding` and `sampling` are pure functions of arrays, compiled; `speculative` lets a
small model go ahead; `writing` makes texts of their tokens. `beam` searches. `engine` writes for
many who come and go, in `slots` of one cache: `seats` says who writes where, `requests` what is
asked.
"""

from lsm.generate.beam import Beam, Branching, Found, beam_search
from lsm.generate.decoding import Decoder, Drawn, State
from lsm.generate.engine import Engine
from lsm.generate.requests import (
    CancelledError,
    ClosedError,
    Counters,
    DeadlineError,
    FaultError,
    QueueFullError,
    Request,
    Ticket,
)
from lsm.generate.sampling import GREEDY, Draws, Sampling
from lsm.generate.slots import Slots
from lsm.generate.speculative import Speculative
from lsm.generate.writing import Piece, Stop, TextStream, Written, collected, write

__all__ = [
    "GREEDY",
    "Beam",
    "Branching",
    "CancelledError",
    "ClosedError",
    "Counters",
    "DeadlineError",
    "Decoder",
    "Drawn",
    "Draws",
    "Engine",
    "FaultError",
    "Found",
    "Piece",
    "QueueFullError",
    "Request",
    "Sampling",
    "Slots",
    "Speculative",
    "State",
    "Stop",
    "TextStream",
    "Ticket",
    "Written",
    "beam_search",
    "collected",
    "write",
]
