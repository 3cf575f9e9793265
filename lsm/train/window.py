"""The metrics and the speed of the steps since the last log row."""

import time

import jax
import numpy as np

from lsm.data import Prefetcher
from lsm.metrics import Weighted
from lsm.train.evaluation import total
from lsm.train.goodput import Clock

_IN_FLIGHT = 16
"""Steps dispatched but not finished: enough to hide the host, few enough to hold their batches."""


class Window:
    """Collects each step's metrics without waiting for them; reads them all at once."""

    def __init__(self, start: int, prefetcher: Prefetcher, clock: Clock):
        """Opens a window whose first step is `start + 1`; books time as it is read."""
        self._prefetcher, self._clock = prefetcher, clock
        self.clear(start)

    def __len__(self) -> int:
        return len(self._metrics)

    def clear(self, step: int) -> None:
        """Starts anew after `step`, and the clock with it."""
        self.first = step + 1
        self._metrics: list[dict[str, Weighted]] = []
        self._untimed = 0
        self.restart()

    def restart(self) -> None:
        """Starts the clock here; steps collected before do not count into the speed."""
        self._untimed = len(self._metrics)
        self._began = time.monotonic()
        self._waited = self._prefetcher.waited

    def book(self, kind: str) -> float:
        """Books the time since `restart`, but for waits for data; returns those, in seconds."""
        waited = self._prefetcher.waited - self._waited
        self._clock.book("input", waited)
        self._clock.book(kind)
        return waited

    def add(self, metrics: dict[str, Weighted]) -> None:
        """Adds a step's metrics; waits for the one `_IN_FLIGHT` steps back."""
        self._metrics.append(metrics)
        if len(self._metrics) > _IN_FLIGHT:
            self._metrics[-_IN_FLIGHT]["loss"].sum.block_until_ready()

    def read(self) -> tuple[dict[str, Weighted], dict[str, float], int | None]:
        """Waits for the steps; returns (totals, speed, first step whose loss is not finite).

        There is no speed where no step was timed: just after a start.
        """
        jax.block_until_ready(self._metrics[-1])
        seconds = max(time.monotonic() - self._began, 1e-9)
        waited = self.book("steps")
        timed = len(self._metrics) - self._untimed
        speed = {}
        if timed:
            speed["steps_per_sec"] = timed / seconds
            speed["input_wait"] = min(waited / seconds, 1.0)
        metrics = jax.device_get(self._metrics)
        finite = [bool(np.isfinite(m["loss"].sum)) for m in metrics]
        bad = None if all(finite) else self.first + finite.index(False)
        return total(metrics), speed, bad
