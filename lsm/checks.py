"""Range checks of config fields, with one readable line where one fails."""

import dataclasses
import math
import re
from typing import Any

from lsm.durations import parse
from lsm.errors import ConfigError, shortened

LARGEST = 1 << 24
"""Largest size along one axis of anything here: a width, a vocabulary, a batch."""

THREADS = 1024
"""Most threads of one kind that a process may have."""


def require(config: Any, **intervals: str) -> None:
    """Checks that fields of a dataclass lie in intervals, such as `b1="[0, 1)"`.

    A field whose default is None may also be None.

    Raises:
      ConfigError: a field is not a number, or lies outside its interval.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, interval in intervals.items():
        value = getattr(config, name)
        if value is None and defaults[name] is None:
            continue
        if not _is_number(value) or not _inside(value, interval):
            raise ConfigError(
                f"{type(config).__name__}.{name}: {_shown(value)} given; "
                f"allowed: a number in {interval}."
            )


def require_sizes(config: Any, *names: str) -> None:
    """Checks that whole numbers in fields of a dataclass, or in tuples there, are 1 to LARGEST.

    Raises:
      ConfigError: one of them is not.
    """
    for name in names:
        value = getattr(config, name)
        sizes = value if isinstance(value, tuple | list) else (value,)
        # What is no int fails in `lsm.config.schema.check`, which names the type that is needed.
        sizes = [size for size in sizes if isinstance(size, int)]
        if any(not 1 <= size <= LARGEST for size in sizes):
            allowed = "1 or more" if min(sizes) < 1 else f"{LARGEST:,} or less"
            raise ConfigError(
                f"{type(config).__name__}.{name}: {_shown(value)} given; allowed: {allowed}."
            )


def require_pattern(config: Any, *names: str) -> None:
    """Checks that fields of a dataclass are regular expressions, else raises ConfigError."""
    for name in names:
        require_regex(f"{type(config).__name__}.{name}", getattr(config, name))


def require_regex(field: str, value: Any) -> None:
    """Checks that `value` is a regular expression, else raises a ConfigError that names `field`."""
    if not isinstance(value, str):
        raise ConfigError(f"{field}: {_shown(value)} given; allowed: a regular expression (str).")
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:  # of x{9999999999}, of ((((...
        raise ConfigError(
            f"{field}: {_shown(value)} is not a regular expression: {error}."
        ) from error


def require_choice(config: Any, name: str, *allowed: str) -> None:
    """Checks that a field of a dataclass is one of `allowed`, else raises ConfigError."""
    value = getattr(config, name)
    if value not in allowed:
        raise ConfigError(
            f"{type(config).__name__}.{name}: {_shown(value)} given; "
            f"allowed: {', '.join(map(repr, allowed))}."
        )


def require_duration(config: Any, name: str, *values: Any, zero: bool = False) -> None:
    """Checks that the values of a field are durations, above 0 unless `zero` may be given.

    Raises:
      ConfigError: one of them is not.
    """
    field = f"{type(config).__name__}.{name}"
    for value in values:
        amount = parse(value, field)[0] if isinstance(value, str) else value
        whole = isinstance(value, str | int) and not isinstance(value, bool)
        if not whole or amount < 0 or (amount == 0 and not zero):
            raise ConfigError(
                f"{field}: {_shown(value)} given; allowed: a duration{'' if zero else ' above 0'}, "
                "such as 300, '2 epochs' or '5%'."
            )


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    try:
        return shortened(repr(value))
    except ValueError:  # Python does not write out a whole number of more than 4,300 digits
        return "a number of thousands of digits"


def _inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below
