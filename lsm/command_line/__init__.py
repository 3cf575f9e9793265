"""What every command shares: how absl flags are parsed, listed, and told of in one line.

A command defines its flags in a new `absl.flags.FlagValues`, so that two commands, or two calls of
one, do not share a flag by its name. Its `main` returns the exit status.
"""

import _thread
import errno
import functools
import itertools
import math
import os
import pathlib
import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from absl import flags

from lsm.errors import ConfigError, LsmError, called, listed, nearest, shortened

HELP = frozenset({"--help", "-help", "-h", "--helpshort"})
"""Words that ask for the list of flags."""

DEBUG = "show the whole traceback of an error, unfiltered"
"""What the flag `--debug` does, which `parse` and `status` know."""

_FRAMES = 4  # that `report` shows, in two lines each
_HERE = str(pathlib.Path(__file__).parents[1]) + os.sep
_INSTALLED = r"[/\\](?:site|dist)-packages[/\\]"
_STDLIB = sysconfig.get_path("stdlib") + os.sep
_NEEDED = "must have a value other than None"
"""What absl says of a flag that is needed."""


def run(
    act: Callable[[flags.FlagValues, list[str]], int | None],
    given: flags.FlagValues,
    argv: Sequence[str] | None = None,
    *,
    doc: str,
    words: bool = False,
    again: str = "",
) -> int:
    """Parses the command line, does `act`, and returns the exit status; see `parse` and `status`.

    Args:
      act: takes the flags, and the words that are none; what it returns is the status, None is 0.
      given: the flags of the command; `--debug` is added.
      argv: the command line without the program; None takes that of this process.
      doc: what `--help` prints above the flags.
      words: whether the command takes words beside its flags.
      again: see `status`.
    """
    argv = sys.argv[1:] if argv is None else argv
    flags.DEFINE_bool("debug", False, DEBUG, given)
    return status(lambda: act(given, parse(given, argv, doc=doc, words=words)), again, given)


def checkpoint(given: flags.FlagValues) -> int | str:
    """Returns what `--step` says of a run's checkpoint: "best", "last", or the number of a step."""
    return int(given.step) if given.step.isdecimal() else given.step


def status(
    act: Callable[[], int | None], again: str = "", given: flags.FlagValues | None = None
) -> int:
    """Does `act` and returns the exit status; what the user can mend is one line on stderr.

    It is what `act` returns (None is 0), 1 after an error or where stdout was closed, and 130 after
    Ctrl-C. `again` is added to the line about these two: "; the same command continues".

    Args:
      act: what is done.
      again: see above.
      given: flags with `--debug` among them: without it, a bug is told by `report`; with it, any
        error is raised. None raises what is a bug.
    """
    _hear_interruptions()
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        code = act() or 0
        sys.stdout.flush()
        return code
    except BaseException as error:
        brief = isinstance(error, Exception) and given is not None
        if brief and given["debug"].value:
            raise
        if (told := line(error, again)) is None:
            # A hook, as of several processes or a debugger, wants to see it.
            if not brief or sys.excepthook is not sys.__excepthook__:
                raise
            print(report(error), file=sys.stderr, flush=True)
            return 1
        # Of stdout: what is still to be written would fail once more, at exit.
        if isinstance(error, OSError) and error.filename is None:
            _close_stdout()
        print(f"error: {told[0]}", file=sys.stderr, flush=True)
        return told[1]


def line(error: BaseException, again: str = "") -> tuple[str, int] | None:
    """Returns the line and the exit status for what the user can mend; None for a bug."""
    match error:
        case LsmError():
            return str(error), 1
        case KeyboardInterrupt():
            return f"interrupted{again}.", 130
        case MemoryError():
            return "there is not enough memory" + (f": {error}." if str(error) else "."), 1
        case BrokenPipeError():  # the reader of our output, such as `head`, has gone
            return f"stdout was closed{again}.", 1
        # The system's word on a file: no permission, a loop of links, a name that is too long.
        case OSError(filename=str() | bytes() | os.PathLike() as name, strerror=str(reason)):
            return f"{shortened(os.fsdecode(name), 200)}: {reason}.", 1
        case OSError(errno=errno.ENOSPC, strerror=str(reason)):
            return f"stdout: {reason}{again}.", 1
    return None


def report(error: Exception) -> str:
    """Returns a bug in at most ten lines: what, and in whose code, the innermost line first.

    Lines of lsm and of libraries are left out, but where there are no others: then they are those
    of the library that a field of the config has put in, else those of lsm.
    """
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    theirs = [frame for frame in frames if not _is_library(frame.filename)]
    field = called(error)
    put_in = _put_in(frames) if field and not theirs else []
    shown = theirs or put_in or [frame for frame in frames if frame.filename.startswith(_HERE)]
    lines = [f"error: {type(error).__name__}: {shortened(' '.join(str(error).split()), 400)}"]
    for frame in shown[:_FRAMES]:
        lines.append(
            f"  {frame.filename.removeprefix(os.getcwd() + os.sep)}:{frame.lineno}, in {frame.name}"
        )
        lines += [f"    {shortened(frame.line, 100)}"] if frame.line else []
    # XLA's own errors tell of memory or of a device.
    blameless = theirs or type(error).__name__ == "JaxRuntimeError"
    blame = "" if blameless else "No code of yours is in it: it looks like a bug of lsm. "
    if put_in:
        blame = f"It is raised in {field} of the config. "
    return "\n".join([*lines, f"{blame}--debug shows everything."])


def _put_in(frames: Sequence[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Returns the frames of a library that `lsm.tasks` has called, without JAX's under it.

    Where other code of lsm has called it there are none: then that is what is wrong.
    """
    inner = list(itertools.takewhile(lambda frame: not frame.filename.startswith(_HERE), frames))
    if not frames[len(inner)].filename.startswith(os.path.join(_HERE, "tasks", "")):
        return []
    return [frame for frame in inner if re.search(_INSTALLED + "(?!jax|numpy)", frame.filename)]


def _is_library(file: str) -> bool:
    """Whether a file is of lsm, of an installed package, or of Python."""
    return bool(re.search(_INSTALLED, file)) or file.startswith((_HERE, _STDLIB, "<"))


def show(lines: Iterable[str]) -> None:
    """Prints what was asked for; that its reader, such as `head`, leaves early is no error."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        _close_stdout()


def parse(
    given: flags.FlagValues, argv: Sequence[str], *, doc: str, words: bool = False, advice: str = ""
) -> list[str]:
    """Sets the flags from a command line; for `--help`, lists them and exits.

    Args:
      given: the flags of the command.
      argv: the command line without the program.
      doc: what `--help` prints above the flags.
      words: whether the command takes words beside its flags.
      advice: said with an unknown flag or word: what else could have been meant.

    Returns:
      The words that are no flags, and those after `--`.

    Raises:
      ConfigError: a flag is unknown, is needed and absent, or has no value or a wrong one; or there
        is a word where none is taken.
    """
    own = list(itertools.takewhile(lambda word: word != "--", argv))
    if HELP.intersection(own):
        show([*doc.strip().splitlines(), "", *describe(given)])
        sys.exit(0)
    _check_values_are_there(given, own)
    try:
        rest = given(["", *argv])[1:]
    except (flags.Error, ValueError) as error:
        raise ConfigError(_told(error, given, advice)) from error
    if rest and not words:
        raise ConfigError(f"{rest[0]!r} given; only flags are taken{_after(advice)}.")
    if "debug" in given and given["debug"].value:
        _show_all_frames()
    for name in given:
        if isinstance(given[name].value, float) and not math.isfinite(given[name].value):
            raise ConfigError(f"--{name}: {given[name].value} given; {_needed(given[name])}.")
    return rest


def _show_all_frames() -> None:
    """Makes JAX and Flax leave their own frames in tracebacks, loaded already or not."""
    os.environ |= {"JAX_TRACEBACK_FILTERING": "off", "FLAX_FILTER_FRAMES": "false"}
    for name, field, value in (
        ("jax", "jax_traceback_filtering", "off"),
        ("flax", "flax_filter_frames", False),
    ):
        if name in sys.modules:
            sys.modules[name].config.update(field, value)


def require_one_of(word: str, allowed: Iterable[str]) -> None:
    """Raises ConfigError where a word of the command line is none of `allowed`."""
    allowed = list(allowed)
    if word not in allowed:
        told = repr(word) if word else "nothing"
        raise ConfigError(f"{told} given; allowed: {', '.join(allowed)}.{nearest(word, allowed)}")


def describe(given: flags.FlagValues) -> Iterator[str]:
    """Yields two lines for every flag of a command: `--name: type = default`, and what it is."""
    for name in _own(given):
        flag = given[name]
        default = "" if flag.default in (None, "", []) else f" = {flag.default}"
        needed = any(_NEEDED in validator.message for validator in flag.validators)
        yield f"--{name}: {_kind(flag)}{default}{' (needed)' if needed else ''}"
        yield f"    {_what(flag)}"


def _own(given: flags.FlagValues) -> list[str]:
    """The names of a command's flags, without those that absl adds to the flags of a process."""
    modules = given.flags_by_module_dict().items()
    return [f.name for name, found in modules if not name.startswith("absl.") for f in found]


def _kind(flag: flags.Flag) -> str:
    if flag.flag_type() == "multi string":
        return "string, may be repeated"
    return " | ".join(getattr(flag.parser, "enum_values", ())) or flag.flag_type()


def _what(flag: flags.Flag) -> str:
    """The text of a flag without what absl adds, which `_kind` tells already."""
    return re.sub(r"^<.*?>: |;\s+repeat this option to specify a list of values$", "", flag.help)


def _check_values_are_there(given: flags.FlagValues, argv: Sequence[str]) -> None:
    """absl takes the next flag for a value, and an empty text for one, as of an unset variable."""
    for word, after in itertools.pairwise([*argv, "--"]):
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in given or given[name].boolean:
            continue
        value = value if equals else after
        if (not value and given[name].default is None) or (not equals and value.startswith("--")):
            raise ConfigError(f"--{name}: a value is needed, as in --{name}=VALUE.")


def _told(error: Exception, given: flags.FlagValues, advice: str) -> str:
    """Returns what absl says against a command line in the words of this house."""
    if isinstance(error, flags.UnrecognizedFlagError):
        word, own = error.flagvalue.partition("=")[0], _own(given)
        known = listed((f"--{name}" for name in own), 30) or "none"
        hint = nearest(error.flagname, own).replace("'", "'--", 1)
        return f"{word}: there is no such flag; there are {known}{_after(advice)}.{hint}"
    found = re.match(r"flag --(\w+)=", str(error))
    if not found:
        return " ".join(str(error).split()).removesuffix(".") + "."
    flag = given[found[1]]
    if error.__context__ is None and _NEEDED in str(error):
        return f"--{flag.name} is needed: {_what(flag)}"
    text = str(error).removeprefix(found[0]).removesuffix(f": {error.__context__}")
    allowed = nearest(text, getattr(flag.parser, "enum_values", ()))
    return f"--{flag.name}: {shortened(repr(text))} given; {_needed(flag)}.{allowed}"


def _needed(flag: flags.Flag) -> str:
    allowed = getattr(flag.parser, "enum_values", ("true", "false") if flag.boolean else ())
    return f"{' | '.join(map(repr, allowed)) or flag.parser.syntactic_help} is needed"


def _after(advice: str) -> str:
    return f"; {advice}" if advice else ""


@functools.cache
def _hear_interruptions() -> None:
    """Makes Ctrl-C heard where Python drops it: in `__del__` and callbacks of weak references."""
    hook = sys.unraisablehook

    def once_more(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            # A moment later: in here Python would drop it again.
            later = threading.Timer(0.05, _thread.interrupt_main)
            later.daemon = True
            later.start()
        else:
            hook(unraisable)

    sys.unraisablehook = once_more


def _close_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
