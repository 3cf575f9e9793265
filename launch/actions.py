"""What a launcher does: it writes files and runs programs, or prints a script that does the same.

A launcher is a frozen dataclass of flags and a function from it to actions.
"""

import dataclasses
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from launch.command import Launcher, LaunchError, parse, split
from lsm import command_line


@dataclasses.dataclass(frozen=True)
class WriteFile:
    """Writes a file, and makes its folder.

    Attributes:
      path: the file.
      text: what will be in it; it ends with a newline.
    """

    path: str
    text: str


@dataclasses.dataclass(frozen=True)
class RunProgram:
    """Runs a program in the foreground; its output goes to the terminal.

    Attributes:
      words: the program and its arguments, not yet quoted.
      stdin: what it reads; "" for nothing.
    """

    words: tuple[str, ...]
    stdin: str = ""


Action = WriteFile | RunProgram


def main(
    cls: type[Launcher],
    plan: Callable[[Launcher, tuple[str, ...]], Sequence[Action]],
    argv: Sequence[str] | None = None,
) -> int:
    """Runs a launcher; returns the exit status, 1 after one line on stderr.

    Args:
      cls: dataclass of the launcher's flags; `dry_run` is one of them.
      plan: from the flags and the command after `--` to what is to be done.
      argv: the command line without the program; None takes that of this process.
    """

    def act() -> None:
        own, command = split(sys.argv[1:] if argv is None else argv)
        given = parse(cls, own)
        perform(plan(given, command), given.dry_run)

    return command_line.status(act)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as it is read, in a block, and everything where it belongs."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

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
        if isinstance(action, WriteFile):
            _write(pathlib.Path(action.path), action.text)
        else:
            run_program(action)


def run_program(action: RunProgram) -> None:
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
    if isinstance(action, RunProgram) and not action.stdin:
        return shlex.join(action.words)
    text = action.text if isinstance(action, WriteFile) else action.stdin
    end = next(e for e in ("END", "END_OF_FILE", "END_OF_PLAN") if e not in text.splitlines())
    if isinstance(action, RunProgram):
        return f"{shlex.join(action.words)} <<'{end}'\n{text}{end}"
    folder = str(pathlib.PurePosixPath(action.path).parent)
    first = "" if folder == "." else f"mkdir -p {shlex.quote(folder)}\n"
    return f"{first}cat > {shlex.quote(action.path)} <<'{end}'\n{text}{end}"
