"""Leaving a run in good order when the machine is taken away."""

import signal
import threading
from types import FrameType


class Interrupt:
    """While open, SIGTERM and Ctrl-C ask the loop to save and stop instead of killing it.

    A second Ctrl-C stops at once. Outside the main thread signals cannot be caught, and
    nothing is changed.
    """

    def __init__(self):
        self.requested: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
