"""The processes of one run, in touch over TCP: who is here, who has gone, when to stop together.

Process 0 keeps a hub; every process, itself included, holds one connection to it. The connection
is the sign of life: the kernel closes it the moment that a process is killed, and a beat every few
seconds finds a machine that vanished. Nothing here touches a device, so it also works while the
devices wait for a process that will never answer.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lsm.errors import ProcessError
from lsm.processes.hub import AGAIN, listen, send

_TEXT = 2000
"""Characters of an error that the others are told."""


class Peers:
    """One process's end of the connection.

    A thread listens: where any process of the run fails or goes away, it prints one line on stderr
    and ends this process with status 1, whatever the main thread is waiting for. Files that a run
    writes are whole at any moment, so this is safe.

    Attributes:
      process: number of this process, 0 to `count - 1`.
      count: number of processes.
      name: "process 1 of 4".
      coordinator: "host:port" for `jax.distributed`, chosen by process 0; None until all are here.
    """

    def __init__(
        self, connection: socket.socket, process: int, count: int, timeout: float, secret: str
    ):
        """Says hello over an open connection; `join` is the way here."""
        self.process, self.count, self.name = process, count, f"process {process} of {count}"
        self.coordinator: str | None = None
        self._connection, self._timeout = connection, timeout
        self._sending, self._changed = threading.Lock(), threading.Condition()
        self._point = self._loop = 0
        self._passed: dict[int, int] = {}  # loop -> last step begun without stopping after it
        self._answered: dict[int, int] = {}  # loop -> what the hub was told of it
        self._last: dict[int, int] = {}  # loop -> the step that all stop after
        self._verdict: dict[str, Any] = {}
        self._failing = self._leaving = False
        self._send(kind="hello", process=process, count=count, secret=secret)
        for target in (self._listen, self._beat):
            threading.Thread(target=target, name="peers", daemon=True).start()

    @classmethod
    def join(
        cls,
        address: tuple[str, int],
        process: int,
        count: int,
        *,
        start_timeout: float,
        peer_timeout: float,
        secret: str = "",
    ) -> "Peers":
        """Meets the other processes at the hub; `initialize` explains the rest.

        Raises:
          ProcessError: not all came in time (they are named), a number is taken twice, or the
            processes do not agree how many they are.
        """
        deadline = time.monotonic() + start_timeout
        connection = _connect(address, process, count, start_timeout)
        peers = cls(connection, process, count, peer_timeout, secret)
        # The hub gives up in time and says who is missing: it is given a little longer here.
        peers._wait(lambda: peers._verdict or peers._joined, deadline + 5 - time.monotonic())
        if peers._joined:
            return peers
        peers.close()
        raise ProcessError(peers._verdict.get("reason", "process 0 does not answer."))

    def arrive(self, name: str) -> None:
        """Tells that this process is about to wait for all at `name`.

        All processes must make the same calls in the same order. Where one does not come in time,
        all are ended with a line that names it.
        """
        self._point += 1
        self._send(kind="at", point=self._point, name=name)

    def begin_loop(self) -> None:
        """Begins a new count of steps, in every process alike."""
        with self._changed:
            self._loop += 1

    def ask_to_stop(self) -> None:
        """Asks that all processes stop after the same step, as soon as possible."""
        self._send(kind="leave", loop=self._loop)

    def stops_after(self, step: int) -> bool:
        """Returns whether all processes are to stop after `step`; called once a step, by all.

        Where a stop is being agreed on, a process that has told its step waits here, for
        milliseconds, before it begins a later one: the agreed step lies ahead of every process.
        """
        with self._changed:
            loop = self._loop
            if loop in self._answered and step > self._answered[loop]:
                self._changed.wait_for(lambda: loop in self._last)
            self._passed[loop] = step
            return loop in self._last and step >= self._last[loop]

    def fail(self, text: str, wait: float = 2.0) -> bool:
        """Tells all processes to stop because of an error here.

        Returns:
          Whether this error is still to be told: False where another process has told the same.
        """
        self._failing, text = True, text[:_TEXT]
        # An error of all processes, such as a wrong flag, is process 0's to tell.
        if self.process == 0 or not self._wait(lambda: self._verdict, wait):
            self._send(kind="failed", text=text)
            self._wait(lambda: self._verdict, wait)
        mine = self._verdict.get("process", self.process) == self.process
        return mine or self._verdict["error"] != text

    def leave(self) -> None:
        """Waits until all take leave; from then on nobody minds when a process ends."""
        self.arrive("the end of the run")
        self._send(kind="bye")
        self._wait(lambda: self._leaving)

    def close(self) -> None:
        """Cuts the connection, and minds nothing that comes of it here."""
        self._leaving = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    @property
    def _joined(self) -> bool:
        return self.coordinator is not None

    def _wait(self, condition: Callable[[], Any], timeout: float | None = None) -> Any:
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def _send(self, **message: Any) -> None:
        with self._sending:
            send(self._connection, **message)

    def _beat(self) -> None:
        while not self._leaving:
            time.sleep(self._timeout / 4)
            self._send(kind="beat")

    def _listen(self) -> None:
        ended = listen(self._connection, self._timeout, self._hear)
        gone = f"process 0 of {self.count} {ended}; {AGAIN}"
        self._hear({"kind": "stop", "process": 0, "reason": gone, "error": ""})

    def _hear(self, message: Any) -> None:
        with self._changed:
            match message:
                case {"kind": "welcome", "jax": str(coordinator)}:
                    self.coordinator = coordinator
                case {"kind": "ask", "loop": int(loop)}:
                    self._answered[loop] = self._passed.get(loop, -1)
                    self._send(kind="step", loop=loop, step=self._answered[loop])
                case {"kind": "last", "loop": int(loop), "step": int(step)}:
                    self._last[loop] = step
                case {"kind": "stop", "process": int(), "reason": str(reason), "error": str(error)}:
                    if self._verdict:  # the connection's end comes after it
                        return
                    self._verdict = message
                    telling = not self._joined or (self._failing and error)  # in the main thread
                    if not (telling or self._leaving):
                        end(f"error: {self.name} stops, because {reason}")
                case {"kind": "bye"}:
                    self._leaving = True
            self._changed.notify_all()


def end(line: str, status: int = 1) -> None:
    """Prints a line on stderr, if there is one, and ends the process at once, with no clean-up.

    Clean-up would wait for processes that do not answer any more.
    """
    if line:
        with contextlib.suppress(OSError, ValueError):
            os.write(2, f"{line}\n".encode())
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # JAX tells the same in fifteen lines
    flusher = threading.Thread(target=_flush, daemon=True)
    flusher.start()
    flusher.join(1.0)  # the reader of a pipe may be gone as well
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def free_port() -> int:
    """Returns a TCP port that is free on this host at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _connect(
    address: tuple[str, int], process: int, count: int, start_timeout: float
) -> socket.socket:
    deadline = time.monotonic() + start_timeout
    while True:
        try:
            return socket.create_connection(address, timeout=5)
        except OSError as error:
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"process {process} of {count} waited {start_timeout:g} s: process 0 is "
                    f"missing, nothing answers at {address[0]}:{address[1]} ({error})."
                ) from error
            time.sleep(0.1)
