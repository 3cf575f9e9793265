"""What an engine is asked for, what it says of its work, and why it refuses or ends a request."""

import dataclasses
import threading
from collections.abc import Callable, Mapping

import numpy as np

from lsm.checks import require
from lsm.errors import LsmError
from lsm.generate.sampling import Sampling
from lsm.generate.slots import LIKELIEST
from lsm.generate.writing import Piece, Stop


class QueueFullError(LsmError):
    """As many requests wait as may; one may come back later."""


class ClosedError(LsmError):
    """The engine takes no requests any more."""


class CancelledError(LsmError):
    """Whoever asked wants no more of it."""


class DeadlineError(LsmError):
    """The time of a request is over."""


class FaultError(LsmError):
    """The model failed while the text was written."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A text to be written.

    Attributes:
      prompt: ids (n,).
      stop: when the text ends.
      sampling: how tokens are drawn.
      seed: of what is drawn.
      likeliest: how many of the likeliest tokens are told with each.
      seconds: time that it may take, waiting among it; None for any.
    """

    prompt: np.ndarray
    stop: Stop = Stop()
    sampling: Sampling = Sampling()
    seed: int = 0
    likeliest: int = 0
    seconds: float | None = None

    def __post_init__(self):
        require(self, likeliest=f"[0, {LIKELIEST}]", seconds="(0, inf)")
        require(self, seed=f"[{-(1 << 63)}, {1 << 63})")


Listener = Callable[[Piece | LsmError], None]
"""Is given each piece, by the thread that steps; one with a `finish`, or an error, is the last."""


class Ticket:
    """A request that was taken.

    Attributes:
      request: what was asked for.
      since: when, by the engine's clock.
    """

    def __init__(self, request: Request, listen: Listener, since: float, changed: Callable):
        self.request, self.listen, self.since = request, listen, since
        self._changed, self._cancelled = changed, threading.Event()

    def cancel(self) -> None:
        """Gives the request up, from any thread: its slot is free at the next step."""
        self._cancelled.set()
        self._changed()

    def over(self, now: float) -> LsmError | None:
        """Returns why it ends now, or None where it goes on."""
        if self._cancelled.is_set():
            return CancelledError("generate: the request was cancelled.")
        seconds = self.request.seconds
        if seconds is not None and now - self.since >= seconds:
            return DeadlineError(f"generate: the request's {seconds:g} seconds are over.")
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counters:
    """What an engine has done since it began, and what it does now; times in seconds.

    Attributes:
      waiting: requests without a slot, now.
      running: requests with one, now.
      positions: positions of the cache that running requests fill, now.
      ended: requests by how they ended: "stop", "length" or the name of an error.
      tokens: tokens that were given out.
      read: tokens of prompts that were read.
      reused: tokens of prompts that were there already.
      first_tokens: requests whose first token came.
      first_token_seconds: sum of the times from request to first token.
      steps: by how many texts went on at once, n at place n, how many steps there were.
      step_seconds: sum of the times of these steps, prompts read between them among it.
      faults: steps that failed.
    """

    waiting: int = 0
    running: int = 0
    positions: int = 0
    ended: Mapping[str, int] = dataclasses.field(default_factory=dict)
    tokens: int = 0
    read: int = 0
    reused: int = 0
    first_tokens: int = 0
    first_token_seconds: float = 0.0
    steps: tuple[int, ...] = ()
    step_seconds: float = 0.0
    faults: int = 0
