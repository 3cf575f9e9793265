"""The metrics and the speed of the steps since the last log row."""

import jax
import numpy as np

from lsm.metrics import Weighted
from lsm.train.evaluation import total
from lsm.train.goodput import Clock

_IN_FLIGHT = 16
"""Steps dispatched but not finished: enough to hide the host, few enough to hold their batches."""


class Window:
    """Collects each step's metrics without waiting for them; reads them all at once."""

    def __init__(self, start: int, clock: Clock):
        """Opens a window whose first step is `start + 1`; the speed is what `clock` books."""
        self._clock = clock
        self.clear(start)

    def __len__(self) -> int:
        return self._count

    def clear(self, step: int) -> None:
        """Starts anew after `step`."""
        self.first = step + 1
        self._metrics: list[tuple[dict[str, Weighted], int]] = []
        self._count = 0
        self.time_from_here()

    def time_from_here(self) -> None:
        """Leaves the steps collected so far, such as the one that compiled, out of the speed."""
        self._untimed, self._before = len(self), self._clock.spent

    def add(self, metrics: dict[str, Weighted], count: int) -> None:
        """Adds the metrics of `count` steps, () or (count or more,); waits for earlier ones."""
        self._metrics.append((metrics, count))
        self._count += count
        in_flight = max(_IN_FLIGHT // count, 2)
        if len(self._metrics) > in_flight:
            self._metrics[-in_flight][0]["loss"].sum.block_until_ready()

    def read(self) -> tuple[dict[str, Weighted], dict[str, float], int | None]:
        """Waits for the steps; returns (totals, speed, first step whose loss is not finite).

        There is no speed where no step was timed: just after a start.
        """
        with self._clock("steps"):  # dispatched before, at work until here
            jax.block_until_ready(self._metrics[-1][0])
        metrics = [
            {name: Weighted(*(np.atleast_1d(x)[i] for x in pair)) for name, pair in row.items()}
            for row, count in jax.device_get(self._metrics)
            for i in range(count)
        ]
        finite = [bool(np.isfinite(m["loss"].sum)) for m in metrics]
        bad = None if all(finite) else self.first + finite.index(False)
        return total(metrics), self._speed(), bad

    def _speed(self) -> dict[str, float]:
        timed, now, before = len(self) - self._untimed, self._clock.spent, self._before
        if not timed:
            return {}
        waited = now.input - before.input
        seconds = max(now.steps - before.steps + waited, 1e-9)
        return {"steps_per_sec": timed / seconds, "input_wait": waited / seconds}
