"""Tells of compilations that take long, and how long they took last time on this machine."""

import contextlib
import hashlib
import json
import logging
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from lsm import processes
from lsm.command_line.waiting import PATIENCE, bar
from lsm.data import cache
from lsm.files import atomic_write

_log = logging.getLogger("lsm.train")


class CompileTimes:
    """How long a program took to compile on this machine, kept beside the compiled programs."""

    def __init__(self, config: Any):
        """Takes the config in JSON; what a program is made of is a part of it."""
        of = {name: config.get(name) for name in ("task", "optimizer", "train", "mesh")}
        devices = [jax.device_count(), jax.devices()[0].device_kind, jax.__version__]
        key = hashlib.sha256(json.dumps([of, devices]).encode()).hexdigest()[:16]
        self._path = pathlib.Path(cache.root() / "compile_seconds" / key)

    @property
    def last(self) -> float | None:
        """Seconds that it took last time, when it was not read from the cache; None: never here."""
        try:
            return float(self._path.read_text())
        except (OSError, ValueError):  # another's rubbish is as good as nothing
            return None

    def keep(self, seconds: float) -> None:
        """Keeps them, where they are worth telling: what is read from a cache is not."""
        if seconds > PATIENCE:
            with contextlib.suppress(OSError):  # that nothing can be kept is told of elsewhere
                self._path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(self._path, f"{seconds:.1f}".encode())

    def __str__(self) -> str:
        last = self.last
        return "first time on this machine" if last is None else f"about {last:.0f} s last time"


@contextlib.contextmanager
def telling(what: str, more: str) -> Iterator[None]:
    """Says what is waited for, where that takes more than two seconds.

    In a terminal it is a line with the seconds, which goes when it is done; elsewhere a line then,
    and one when it is done.
    """
    if not processes.is_first():
        yield
        return
    start, drawn = time.monotonic(), bar(f"{what} ({more})")

    def begin() -> None:
        drawn.start() if drawn else _log.info("%s (%s) ...", what, more)

    timer = threading.Timer(PATIENCE, begin)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        seconds = time.monotonic() - start
        if drawn:
            drawn.stop()
        elif seconds > PATIENCE:
            _log.info("%s: done in %.0f s", what, seconds)
