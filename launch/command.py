"""What the launchers share: their flags, the experiment after `--`, and a plan that can be printed.

A launcher is a frozen dataclass of flags and a function from it to actions: files to write and
commands to run. `--dry_run` prints the actions as a shell script that does the same.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import yaml

from lsm import cli
from lsm.config import flags, schema
from lsm.errors import LsmError, listed, nearest

Flags = TypeVar("Flags")

UNFINISHED = 75
"""Exit status (EX_TEMPFAIL of sysexits.h) of a run that was interrupted, saved, and must go on."""


class LaunchError(LsmError):
    """A launcher's flag is wrong, or a program that it needs is missing or has failed."""


@dataclasses.dataclass(frozen=True)
class Write:
    """Writes a file, and makes its folder.

    Attributes:
      path: the file.
      text: what will be in it; it ends with a newline.
    """

    path: str
    text: str


@dataclasses.dataclass(frozen=True)
class Run:
    """Runs a program in the foreground; its output goes to the terminal.

    Attributes:
      words: the program and its arguments, not yet quoted.
      stdin: what it reads; "" for nothing.
    """

    words: tuple[str, ...]
    stdin: str = ""


Action = Write | Run


def main(cls: type[Flags], plan: Callable[[Flags, tuple[str, ...]], Sequence[Action]]) -> None:
    """Runs a launcher on the command line and exits: 0, or 1 after one line on stderr.

    Args:
      cls: dataclass of the launcher's flags; `dry_run` is one of them.
      plan: from the flags and the command after `--` to what is to be done.
    """
    with one_line_errors():
        own, command = split(sys.argv[1:])
        if "--help" in own:
            print("\n".join(describe(cls)))
            return
        given = parse(cls, own)
        perform(plan(given, command), given.dry_run)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns an LsmError into `error: ...` on stderr and exit status 1."""
    try:
        yield
    except LsmError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def split(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Returns the words before the first `--`, and those after it (none where there is no `--`)."""
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], tuple(words[cut + 1 :])


def parse(cls: type[Flags], words: Sequence[str]) -> Flags:
    """Returns the dataclass `cls` from `--field=value` words.

    `--field value` is taken too, `--field` alone for a bool; a tuple's flag may be repeated.

    Raises:
      LsmError: a flag is unknown, lacks its value, or has one of another type or out of range.
    """
    hints, values = schema.hints(cls), {}
    rest = iter(words)
    for word in rest:
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in hints:
            allowed = listed((f"--{field}" for field in hints), 30)
            raise LaunchError(
                f"{word}: there is no such flag; there are {allowed}; the command that is launched "
                f"goes after `--`.{nearest(name, hints)}"
            )
        if not equals:
            text = "true" if hints[name] is bool else next(rest, "--")
            if text.startswith("--"):
                raise LaunchError(f"--{name}: a value is needed, as in --{name}=VALUE.")
        if typing.get_origin(hints[name]) is tuple:
            values[name] = (*values.get(name, ()), text)
        else:
            values[name] = flags.parse_value(text, hints[name], f"--{name}")
    for name, field in schema.fields(cls).items():
        if field.default is dataclasses.MISSING and name not in values:
            raise LaunchError(f"--{name}: needed: {schema.documentation(cls)[name]}")
    return cls(**values)


def describe(cls: type) -> Iterator[str]:
    """Yields two lines for every flag of a launcher: `--name: type = default`, and what it is."""
    texts = schema.documentation(cls)
    for name, field in schema.fields(cls).items():
        default = (
            "" if field.default is dataclasses.MISSING else f" = {schema.shown(field.default)}"
        )
        yield f"--{name}: {schema.spelled(schema.hints(cls)[name])}{default}"
        yield f"    {texts[name]}"


def at_least(flag: str, value: int | None, least: int) -> None:
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
    others = {"--mode=eval", "--config_help", "--config_help=true"}.intersection(command)
    evaluates = ("--mode", "eval") in itertools.pairwise(command)
    known = len(command) > 2 and command[2].startswith("experiments.")
    return known and not others and not evaluates


def workdir(command: Sequence[str]) -> str:
    """Returns the value of `--workdir` in `command`.

    Raises:
      LaunchError: there is none. A run that is put back has to find its checkpoints.
    """
    found = None
    for word, after in itertools.pairwise([*command, ""]):
        if word.startswith("--workdir="):
            found = word.partition("=")[2]
        elif word == "--workdir":
            found = after
    if not found:
        raise LaunchError(
            "--workdir: not given after `--`; a launched run needs it, "
            "as it goes on from the checkpoints in it."
        )
    return found


def without_workdir(command: Sequence[str]) -> tuple[str, ...]:
    """Returns `command` without `--workdir=DIR` or `--workdir DIR`."""
    kept, words = [], iter(command)
    for word in words:
        if word == "--workdir":
            next(words, None)
        elif not word.startswith("--workdir="):
            kept.append(word)
    return tuple(kept)


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

    Does so where `--config=FILE` is given and is a file of this machine.

    Args:
      command: what is launched.
      overrides: further "--config.FIELD=VALUE" words, as a sweep adds them.

    Raises:
      LsmError: the config or an override is wrong.
    """
    rest, fields = cli.split_overrides([*command, *overrides])
    files = [word.partition("=")[2] for word in rest if word.startswith("--config=")]
    if trains(command) and files and pathlib.Path(files[-1].partition(".py:")[0]).exists():
        flags.load(files[-1], fields)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as it is read, in a block."""

    def represent_text(self, text: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def as_yaml(tree: Any) -> str:
    """Returns JSON values as YAML, in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=1000)


def perform(actions: Sequence[Action], dry_run: bool) -> None:
    """Does the actions in order, or prints them as a shell script.

    Raises:
      LaunchError: a file cannot be written, or a program is missing or ends with another status
        than 0; what comes after it is not done.
    """
    if dry_run:
        print("\n".join(map(_as_shell, actions)))
        return
    for action in actions:
        if isinstance(action, Write):
            _write(pathlib.Path(action.path), action.text)
        else:
            run(action)


def run(action: Run) -> None:
    """Runs one program. Raises LaunchError where it is missing or fails."""
    program = action.words[0]
    sys.stdout.flush()
    try:
        done = subprocess.run(action.words, input=action.stdin or None, text=True, check=False)
    except FileNotFoundError as error:
        raise LaunchError(
            f"{program}: there is no such program here; --dry_run prints what would be done."
        ) from error
    if done.returncode:
        shown = shlex.join(action.words[:5])
        raise LaunchError(f"`{shown} ...` ended with status {done.returncode}.")


def _write(path: pathlib.Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise LaunchError(f"{path}: cannot be written: {error.strerror}.") from error


def _as_shell(action: Action) -> str:
    if isinstance(action, Run) and not action.stdin:
        return shlex.join(action.words)
    text = action.text if isinstance(action, Write) else action.stdin
    end = next(e for e in ("END", "END_OF_FILE", "END_OF_PLAN") if e not in text.splitlines())
    if isinstance(action, Run):
        return f"{shlex.join(action.words)} <<'{end}'\n{text}{end}"
    folder = str(pathlib.PurePosixPath(action.path).parent)
    first = "" if folder == "." else f"mkdir -p {shlex.quote(folder)}\n"
    return f"{first}cat > {shlex.quote(action.path)} <<'{end}'\n{text}{end}"
