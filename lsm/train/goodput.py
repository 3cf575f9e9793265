"""Where the time of a run goes: useful steps, and all that is not."""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Seconds of a run, over all its pieces, by what they went into; they add up to its wall time.

    The share of useful steps is what Google's "ML Productivity Goodput" (2024) calls runtime
    goodput, taken from the first line of `lsm.fit`.

    Attributes:
      steps: training steps that the final model is made of.
      input: the loop waited for data.
      compile: tracing, compiling and dispatching the first step, evaluation and initialisation.
      evaluation: evaluating while training and at the end.
      checkpoint: the loop waited for a save; what is written in the background costs nothing.
      startup: data and writers opened, state laid out, program built.
      restore: a checkpoint read back.
      lost: steps that a kill undid and that had to be made again.
      other: rows written, and the like.
    """

    steps: float = 0.0
    input: float = 0.0
    compile: float = 0.0
    evaluation: float = 0.0
    checkpoint: float = 0.0
    startup: float = 0.0
    restore: float = 0.0
    lost: float = 0.0
    other: float = 0.0

    @property
    def total(self) -> float:
        """Wall time."""
        return sum(dataclasses.astuple(self))

    @property
    def share(self) -> float:
        """Share of the wall time in useful steps, 0 to 1."""
        return self.steps / self.total if self.total else 0.0


class Clock:
    """Books all time, as it passes, under one kind or another: fields of `Goodput`.

        with clock("evaluation"):
            ...
            with clock("compile"):  # the inner kind wins
                ...

    Outside of any `with`, the kind is "other".
    """

    def __init__(self):
        """Starts the clock."""
        self._seconds = dataclasses.asdict(Goodput())
        self._kind, self._booked = "other", time.monotonic()

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Books the time inside under `kind`, unless an inner `with` names another."""
        if kind not in self._seconds:
            raise KeyError(f"{kind!r} is no field of Goodput.")
        self._book()
        around, self._kind = self._kind, kind
        try:
            yield
        finally:  # an interrupted evaluation has taken its time too
            self._book()
            self._kind = around

    @property
    def spent(self) -> Goodput:
        """What has been booked up to now, with what earlier pieces of the run had spent."""
        self._book()
        return Goodput(**self._seconds)

    def add(self, earlier: Goodput) -> None:
        """Adds what was spent before this clock started."""
        for kind, seconds in dataclasses.asdict(earlier).items():
            self._seconds[kind] += seconds

    def _book(self) -> None:
        now = time.monotonic()
        self._seconds[self._kind] += now - self._booked
        self._booked = now


def undone(rows: Iterable[Mapping[str, Any]], step: int) -> tuple[int, float]:
    """Returns how many steps after `step` the rows of a killed run tell of, and their seconds.

    A lower bound: what the run did after its last row is not known.

    Args:
      rows: as of `lsm.writers.read_metrics`.
      step: the step that the run goes on from.
    """
    last, seconds = step, 0.0
    for row in rows:
        if row["split"] == "train" and row["step"] > last:
            if row.get("steps_per_sec"):
                seconds += (row["step"] - last) / row["steps_per_sec"]
            last = row["step"]
    return last - step, seconds
