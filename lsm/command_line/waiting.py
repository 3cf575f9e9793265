"""What is waited for, on stderr: in a terminal one line, rewritten, that goes when it is done."""

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 2.0
"""Seconds of waiting after which it is told."""


def bar(text: str, total: int | None = None) -> Any:
    """Returns a bar of `rich.progress`, not yet drawn; None where stderr is no terminal.

    It has one task. With a total it shows how far that is, and its `refresh` draws it; without, it
    shows the time since now, drawn by a thread: a compiler comes back after minutes.
    """
    if not sys.stderr.isatty():
        return None
    from rich import console, progress

    screen = console.Console(stderr=True)
    if not screen.is_interactive:
        return None
    how_far = progress.BarColumn(bar_width=None), progress.MofNCompleteColumn()
    made = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        *(how_far if total is not None else ()),
        progress.TimeElapsedColumn() if total is None else progress.TimeRemainingColumn(),
        console=screen,
        auto_refresh=total is None,
        refresh_per_second=2,
        expand=total is not None,
        transient=True,
    )
    made.add_task(text, total=total)
    return made


@contextlib.contextmanager
def stages(logger: str) -> Iterator[Callable[[str], None]]:
    """Tells on stderr, with the time, each stage that `logger` names as it begins.

    In a terminal that is one line, rewritten, with the time since the stage began; elsewhere a line
    each, behind the seconds since the first. Yields what prints a line that stays.
    """
    from rich import console

    rewritten = bar("starting")
    screen = rewritten.console if rewritten else console.Console(stderr=True)
    say = functools.partial(screen.print, markup=False, highlight=False, soft_wrap=True)
    begun = time.monotonic()

    def tell(record: logging.LogRecord) -> None:
        if rewritten:
            rewritten.reset(rewritten.task_ids[0], description=record.getMessage())
        else:
            say(f"{time.monotonic() - begun:7.1f} s  {record.getMessage()}")

    told, handler = logging.getLogger(logger), logging.Handler()
    handler.emit = tell
    told.setLevel(logging.INFO)
    told.addHandler(handler)
    try:
        with rewritten or contextlib.nullcontext():
            yield say
    finally:
        told.removeHandler(handler)
