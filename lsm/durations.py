"""Durations: how long something lasts, in steps, epochs, examples or per cent of the run.

300              300 steps
"2 epochs"       also "0.5epoch"
"50_000 examples"
"10%"            of the whole run
"""

import dataclasses
import math
import re

from lsm.errors import ConfigError, nearest, shortened

Duration = int | str
"""A number of steps, or a string such as "2 epochs", "50_000 examples", "300 steps", "10%"."""

LONGEST = 2**31 - 1
"""Most steps of a run: they are counted in 32 bits."""

_FORM = re.compile(
    r"\s*([0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?(?:e[0-9]+)?)\s*([a-z]+|%)\s*", re.IGNORECASE
)
_UNITS = ("steps", "epochs", "examples", "%")


@dataclasses.dataclass(frozen=True)
class Horizon:
    """What a duration is measured against.

    Attributes:
      steps: length of the whole run, in optimiser steps.
      batch_size: examples in one step, over all devices and accumulated micro-batches; their mean
        where steps differ.
      examples: examples in one epoch.
    """

    steps: int
    batch_size: int | float
    examples: int

    def __post_init__(self):
        if self.steps > LONGEST:
            raise ConfigError(f"train: {self.steps:.3g} steps given; allowed: {LONGEST:,} or less.")

    @property
    def steps_per_epoch(self) -> float:
        """Steps in one epoch; not whole where the batch does not divide the epoch."""
        return self.examples / self.batch_size


def to_steps(duration: Duration, horizon: Horizon, field: str = "duration") -> int:
    """Returns `duration` as a whole number of steps, rounded to the nearest, at least 0.

    Raises:
      ConfigError: the string is not a number and a unit; names `field`.
    """
    check_duration(duration, field)
    amount, unit = (duration, "steps") if isinstance(duration, int) else parse(duration, field)
    per_unit = {
        "steps": 1,
        "epochs": horizon.steps_per_epoch,
        "examples": 1 / horizon.batch_size,
        "%": horizon.steps / 100,
    }[unit]
    if amount * per_unit > LONGEST:
        raise ConfigError(f"{field}: {duration} given; allowed: {LONGEST:,} steps or less.")
    steps = round(amount * per_unit)
    # A warmup of "1%" in a run of 20 steps is one step, not none.
    return max(steps, 1) if amount else 0


def parse(duration: str, field: str = "duration") -> tuple[float, str]:
    """Splits "2 epochs" into (2.0, "epochs"); the unit is one of steps, epochs, examples, %."""
    found = _FORM.fullmatch(duration)
    unit = found and found[2].lower()
    if unit and unit != "%" and not unit.endswith("s"):
        unit += "s"
    if unit not in _UNITS or not math.isfinite(float(found[1])):
        hint = nearest(unit, _UNITS) if unit else ""
        raise ConfigError(
            f"{field}: {shortened(repr(duration))} is not a duration; give steps (300) or a string "
            f"like '2 epochs', '50_000 examples', '300 steps', '10%'.{hint}"
        )
    return float(found[1]), unit


def check_duration(duration: Duration, field: str = "duration") -> None:
    """Raises ConfigError, which names `field`, where `duration` is negative or has no meaning."""
    if isinstance(duration, str):
        parse(duration, field)
    elif duration < 0:
        raise ConfigError(f"{field}: {duration} given; a duration is 0 or more.")
