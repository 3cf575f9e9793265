"""Leaving a run in good order when the machine is taken away."""

import signal
import threading
from types import FrameType

from lsm import processes


class Interrupt:
    """While open, SIGTERM and Ctrl-C ask the loop to save and stop instead of killing it.

    A second Ctrl-C stops at once. Outside the main thread signals cannot be caught, and
    nothing is changed. Of several processes, one that is asked asks the others: all stop after the
    same step. They agree on it over TCP (`lsm.processes.peers`): an all-reduce at every step would
    cost, and JAX's preemption service may let processes miss each other (docs/design.md).
    """

    def __init__(self):
        self.requested: str | None = None
        self._previous: dict[int, object] = {}
        self._peers = processes.others()
        self._asked = False

    def __enter__(self) -> "Interrupt":
        if self._peers is not None:
            self._peers.begin_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def stops_after(self, step: int) -> bool:
        """Returns whether to save and stop after `step`; to be called at every step."""
        if self._peers is None:
            return self.requested is not None
        if self.requested and not self._asked:
            self._asked = True
            self._peers.ask_to_stop()
        return self._peers.stops_after(step)

    def leaves_now(self) -> bool:
        """Returns whether to leave an evaluation: of several processes none may alone."""
        return self._peers is None and self.requested is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
