"""What the launchers share: their flags, and what they read in the command after `--`.

A launcher's flags are a frozen dataclass, of which `flags_of` makes absl flags.
"""

import dataclasses
import importlib.util
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence
from typing import TypeVar

from absl import flags

from lsm import command_line
from lsm.config import flags as config_flags
from lsm.config import schema
from lsm.errors import LsmError

Launcher = TypeVar("Launcher")

UNFINISHED = 75
"""Exit status (EX_TEMPFAIL of sysexits.h) of a run that was interrupted, saved, and must go on."""


class LaunchError(LsmError):
    """A launcher's flag is wrong, or a program that it needs is missing or has failed."""


_DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    int | None: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    float | None: flags.DEFINE_float,
    str: flags.DEFINE_string,
    str | None: flags.DEFINE_string,
    tuple[str, ...]: flags.DEFINE_multi_string,
}
"""How absl defines a flag for a field of each type."""

_ADVICE = "the command that is launched goes after `--`"


def install(extra: str) -> list[str]:
    """Returns shell commands that install the lsm of this folder into .venv, with `lsm[EXTRA]`.

    Machines' own Python may be older than lsm needs; uv brings one.
    """
    return [
        "python3 -m pip install --quiet --user uv",
        "python3 -m uv venv --quiet --allow-existing --python=3.12 .venv",
        f"python3 -m uv pip install --quiet --python=.venv '.[{extra}]'",
    ]


def require_installed(extra: str, modules: Sequence[str], told: str = "") -> None:
    """Raises LaunchError, which begins with `told`, for the first module that is not there."""
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # of a package above it
            found = None
        if found is None:
            raise LaunchError(f"{told}{module} is not installed: pip install 'lsm[{extra}]'.")


def split(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Returns the words before the first `--`, and those after it (none where there is no `--`)."""
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], tuple(words[cut + 1 :])


def flags_of(*classes: type) -> flags.FlagValues:
    """Returns absl flags for the fields of dataclasses; a field without a default is needed."""
    given = flags.FlagValues()
    for cls in classes:
        texts, hints = schema.documentation(cls), schema.hints(cls)
        for name, field in schema.fields(cls).items():
            needed = field.default is dataclasses.MISSING
            default = None if needed else field.default
            define = _DEFINE[hints[name]]
            define(name, default, texts[name], flag_values=given, required=needed)
    return given


def parse(
    cls: type[Launcher], words: Sequence[str], doc: str | None = None, advice: str = _ADVICE
) -> Launcher:
    """Returns the dataclass `cls` from the flags in `words`; for `--help`, lists them and exits.

    Args:
      cls: dataclass of the flags.
      words: the command line without the program, up to `--`.
      doc: what `--help` prints first; None is the text of the dataclass's module.
      advice: said with an unknown flag or word.

    Raises:
      LsmError: a flag is unknown, lacks its value, or has one of another type or out of range.
    """
    given = flags_of(cls)
    doc = sys.modules[cls.__module__].__doc__ if doc is None else doc
    command_line.parse(given, words, doc=doc, advice=advice)
    values = {name: given[name].value for name in given}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def at_least(flag: str, value: float | None, least: int) -> None:
    """Raises LaunchError where `value` is given and below `least`."""
    if value is not None and value < least:
        raise LaunchError(f"--{flag}: {value} given; {least} or more is needed.")


def name_of(flag: str, value: str, most: int = 63) -> str:
    """Returns `value` if it is a name that DNS allows (RFC 1123), as clusters and clouds ask.

    Raises:
      LaunchError: it is not; proposes one that is.
    """
    if re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", value) and len(value) <= most:
        return value
    proposed = re.sub(r"[^a-z0-9]+", "-", value.lower()).lstrip("-0123456789")[:most].rstrip("-")
    hint = f" Did you mean {proposed!r}?" if proposed else ""
    raise LaunchError(
        f"--{flag}: {value!r} given; small letters, digits and '-' are allowed, {most} of them, "
        f"a letter first.{hint}"
    )


def experiment(command: Sequence[str]) -> str:
    """Returns the last part of the module that `command` runs, "digits" of experiments.digits.

    Raises:
      LaunchError: there is no command, or it is not `python -m MODULE ...`.
    """
    if len(command) < 3 or command[1] != "-m" or command[2].startswith("-"):
        given = f"{shlex.join(command)!r} given" if command else "no command given"
        raise LaunchError(
            f"{given}; after `--` goes what is to run, "
            "as in `-- python -m experiments.digits --workdir=runs/digits`."
        )
    return command[2].rpartition(".")[2]


def trains(command: Sequence[str]) -> bool:
    """Whether `command` is an experiment's training, which leaves a result.json when it is done."""
    asks = {"--help", "--config_help", "--config_help=true"}.intersection(command)
    known = len(command) > 2 and (command[2] == "lsm" or command[2].startswith("experiments."))
    return known and not asks and _value("mode", command) in (None, "train")


def workdir(command: Sequence[str]) -> str:
    """Returns the value of `--workdir` in `command`, the last one.

    Raises:
      LaunchError: there is none. A run that is put back has to find its checkpoints.
    """
    found = _value("workdir", command)
    if not found:
        raise LaunchError(
            "--workdir: not given after `--`; a launched run needs it, "
            "as it goes on from the checkpoints in it."
        )
    return found


def without_workdir(command: Sequence[str]) -> tuple[str, ...]:
    """Returns `command` without `--workdir=DIR` or `--workdir DIR`."""
    return _take("workdir", command)[1]


def _value(flag: str, command: Sequence[str]) -> str | None:
    return _take(flag, command)[0]


def _take(flag: str, command: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Returns the value of one flag of an experiment, None where it is absent, and the rest."""
    given = flags.FlagValues()
    flags.DEFINE_string(flag, None, "of the experiment", flag_values=given)
    try:
        rest = given(["", *command], known_only=True)[1:]
    except flags.Error as error:
        raise LaunchError(f"after `--`: {' '.join(str(error).split())}.") from error
    return given[flag].value, tuple(rest)


def under(folder: str, flag: str, command: Sequence[str]) -> str:
    """Returns the workdir of `command` once it is seen to be inside the shared `folder`.

    Raises:
      LaunchError: it is elsewhere, where other hosts and a restarted run would not see it.
    """
    path = workdir(command)
    if pathlib.PurePosixPath(folder) not in pathlib.PurePosixPath(path).parents:
        raise LaunchError(
            f"--workdir: {path!r} is not inside {folder!r}, where {flag} is mounted; "
            f"other hosts and a restart would not see it. Give --workdir={folder}/NAME."
        )
    return path


def check_config(command: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Loads the config of an experiment here, so that a slip is told before a queue is waited for.

    Does so where `--config` is given and is a file of this machine.

    Args:
      command: what is launched.
      overrides: further "--config.FIELD=VALUE" words, as a sweep adds them.

    Raises:
      LsmError: the config or an override is wrong.
    """
    rest, fields = config_flags.split_overrides([*command, *overrides])
    file = _value("config", rest)
    if trains(command) and file and pathlib.Path(file.partition(".py:")[0]).exists():
        config_flags.load(file, fields)
