"""A profile of a few steps, for TensorBoard or xprof."""

import logging
import pathlib
import re
import sys

import jax

from lsm.errors import ConfigError

_log = logging.getLogger("lsm.train")


class Profile:
    """Traces steps first..last (counted from 1) into `directory`; "" traces none."""

    def __init__(self, window: str, directory: pathlib.Path):
        """Takes a window such as "10:20".

        Raises:
          ConfigError: the window is not FIRST:LAST with 1 <= FIRST <= LAST.
        """
        found = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", window or "0:0")
        self._first, self._last = map(int, found.groups()) if found else (1, 0)
        if window and not 1 <= self._first <= self._last:
            raise ConfigError(f"--profile: {window!r} given; FIRST:LAST is needed, as in 10:20.")
        self._directory, self._tracing = directory, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error) -> None:
        self._stop()

    def expect(self, first: int, last: int) -> None:
        """Warns where none of the steps from `first` to `last`, which are to come, is traced.

        No error: the same command must continue a run that was killed behind its window.
        """
        if self._last and not (first <= self._last and self._first <= last):
            _log.warning(
                "--profile: none of the steps %d to %d is still to come; nothing is traced.",
                *(self._first, self._last),
            )

    def edge(self, step: int) -> int:
        """Returns the last step, from `step` on, before the trace starts or stops."""
        edges = (edge for edge in (self._first - 1, self._last) if edge >= step)
        return min(edges, default=sys.maxsize)

    def at(self, step: int) -> None:
        """Starts or stops the trace; called before each dispatch, with its first step."""
        # A run that goes on in the middle of its window traces the rest.
        if self._first <= step <= self._last and not self._tracing:
            jax.profiler.start_trace(self._directory)
            self._tracing = True
        elif step > self._last:
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
