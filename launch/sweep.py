"""Products of config values, one run each.

`--sweep=config.optimizer.learning_rate=1e-3,3e-3 --sweep=config.train.seed=0,1` are four points.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

from launch.command import LaunchError
from lsm.errors import nearest


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      name: its folder in the workdir, "learning_rate=1e-3,seed=0".
      overrides: its words on the command line, "--config.optimizer.learning_rate=1e-3".
    """

    name: str
    overrides: tuple[str, ...]


def points(sweeps: Sequence[str]) -> tuple[Point, ...]:
    """Returns the product of "config.FIELD=VALUE,VALUE,..." axes, the last one fastest.

    Commas inside brackets or quotes belong to a value: `config.task.model.widths=(32,64),(64,128)`.

    Raises:
      LaunchError: an axis is not of that form, comes twice, or two points have the same name.
    """
    axes = [_axis(text) for text in sweeps]
    fields = [field for field, _ in axes]
    for field in fields:
        if fields.count(field) > 1:
            raise LaunchError(f"--sweep: {field} is given twice; list all its values in one.")
    short = [_shortest(field, fields) for field in fields]
    found = []
    for values in itertools.product(*(values for _, values in axes)):
        parts = [f"{name}={_plain(value)}" for name, value in zip(short, values, strict=True)]
        words = [f"--{field}={value}" for field, value in zip(fields, values, strict=True)]
        found.append(Point(",".join(parts), tuple(words)))
    names = [point.name for point in found]
    for name in names:
        if names.count(name) > 1:
            raise LaunchError(f"--sweep: two points would share the folder {name!r}.")
    return tuple(found)


def _axis(text: str) -> tuple[str, list[str]]:
    field, equals, values = text.partition("=")
    if not re.fullmatch(r"config(\.\w+)+", field):
        fixed = field if field.startswith("config.") else f"config.{field.removeprefix('--')}"
        hint = nearest(field, [fixed.removeprefix("config.config.")]) if field else ""
        raise LaunchError(f"--sweep: {text!r} given; config.FIELD=VALUE,VALUE is needed.{hint}")
    parts = _split(values)
    if not equals or not all(parts):
        raise LaunchError(f"--sweep: {text!r}: a value is missing, as in --sweep={field}=1,2.")
    return field, parts


def _split(text: str) -> list[str]:
    """Splits at the commas that no bracket or quote encloses."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
        if char == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def _shortest(field: str, fields: Sequence[str]) -> str:
    """Returns the fewest last parts of a dotted field that no other field ends with."""
    parts = field.split(".")
    tails = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
    return next(t for t in tails if sum(f".{f}".endswith(f".{t}") for f in fields) == 1)


def _plain(value: str) -> str:
    """Returns `value` with what is awkward in a folder's name as '-'."""
    return re.sub(r"[^\w.+-]+", "-", value).strip("-") or "-"
