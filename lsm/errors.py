"""The errors a user can cause, each told in one readable line.

Everything that is the user's to mend (a config, a dataset, a checkpoint, a mesh) raises a
subclass of `LsmError`. `lsm.command_line` prints it as one line, with exit status 1; a library
user catches it. Anything else that escapes is a bug in lsm and keeps its traceback.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class LsmError(Exception):
    """Something the user can mend. The message is one line: what, given, allowed, how to go on."""

    def __init__(self, line: str):
        # Whatever was given to us and is repeated in it: one line, of which both ends say most.
        super().__init__(shortened(" ".join(line.splitlines()), 1000))


class ConfigError(LsmError):
    """A field of the experiment, or a flag, is unknown, of the wrong type, or out of range."""


class DataError(LsmError):
    """A dataset, split or feature is not there, or not what the task expects."""


class MeshError(LsmError):
    """A mesh or a sharding rule does not fit the devices or the arrays."""


class CheckpointError(LsmError):
    """A checkpoint cannot be written, is damaged, or belongs to another model."""


class ExportError(LsmError):
    """An exported model cannot be written or loaded, is damaged, or is for other devices."""


class TrainingError(LsmError):
    """Training cannot go on, for example because the loss is not finite."""


class ProcessError(LsmError):
    """Processes that work together cannot find each other, or do not agree."""


_CALLED = "raised in "


@contextlib.contextmanager
def calling(field: str) -> Iterator[None]:
    """Notes on what is raised within that it comes of what a field of the config holds."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{_CALLED}{field}")
        raise


def called(error: BaseException) -> str | None:
    """Returns the field that `calling` has noted, the innermost; None without."""
    notes = getattr(error, "__notes__", ())
    return next((n.removeprefix(_CALLED) for n in notes if n.startswith(_CALLED)), None)


def shortened(text: str, most: int = 80) -> str:
    """Returns `text`, without its middle where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = (most - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest of `allowed`, or "" where nothing is close."""
    folded = {option.casefold(): option for option in allowed}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""


def listed(names: Iterable[str], most: int = 12, between: str = ", ") -> str:
    """Returns "a, b, c" for an error message, cut after `most` names."""
    names = list(names)
    more = [f"... ({len(names) - most} more)"] if len(names) > most else []
    return between.join(names[:most] + more)
