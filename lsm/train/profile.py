"""A profile of a few steps, for TensorBoard or xprof."""

import pathlib

import jax

from lsm.errors import ConfigError


class Profile:
    """Traces steps first..last (counted from 1) into `directory`; "" traces none."""

    def __init__(self, window: str, directory: pathlib.Path):
        """Takes a window such as "10:20".

        Raises:
          ConfigError: the window is not FIRST:LAST with 1 <= FIRST <= LAST.
        """
        first, _, last = window.partition(":")
        self._first, self._last = 0, 0
        self._directory, self._tracing = directory, False
        if not window:
            return
        if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
            raise ConfigError(f"--profile: {window!r} given; FIRST:LAST is needed, as in 10:20.")
        self._first, self._last = int(first), int(last)

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error) -> None:
        self._stop()

    def at(self, step: int) -> None:
        """Starts or stops the trace; called before each step."""
        if step == self._first:
            jax.profiler.start_trace(self._directory)
            self._tracing = True
        elif step == self._last + 1:
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
