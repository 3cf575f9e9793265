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
from typing import Any

from lsm.errors import ProcessError
from lsm.processes.hub import Hub, Line


class Peers:
    """One process's end of the connection.

    Once `start` has returned, a thread listens: where any process of the run fails or goes away,
    it prints one line on stderr and ends this process with status 1, whatever the main thread is
    waiting for. Files that a run writes are whole at any moment, so this is safe.

    Attributes:
      process: number of this process, 0 to `count - 1`.
      count: number of processes.
      coordinator: "host:port" for `jax.distributed`, chosen by process 0; "" where none was.
    """

    def __init__(self, connection: Line, process: int, count: int, timeout: float, jax: str):
        self.process, self.count, self.coordinator = process, count, jax
        self._line, self._timeout = connection, timeout
        self._changed = threading.Condition()
        self._gathered: dict[str, list] = {}
        self._calls = self._loop = 0
        self._passed: dict[int, int] = {}  # loop -> last step begun without stopping after it
        self._answered: dict[int, int] = {}  # loop -> what the hub was told of it
        self._last: dict[int, int] = {}  # loop -> the step that all stop after
        self._verdict: dict[str, Any] | None = None
        self._failing = self._leaving = False
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="peers", daemon=True)

    @classmethod
    def start(
        cls,
        address: tuple[str, int],
        process: int,
        count: int,
        *,
        start_timeout: float,
        peer_timeout: float,
        jax_host: str = "",
        listener: socket.socket | None = None,
    ) -> "Peers":
        """Meets the other processes.

        Args:
          address: where process 0 has its hub.
          process: number of this process.
          count: number of processes.
          start_timeout: seconds to wait for all to come.
          peer_timeout: seconds of silence after which a process is taken for lost.
          jax_host: process 0 also chooses a port of this host for `jax.distributed`; "": none.
          listener: the hub's socket, where it is open already.

        Raises:
          ProcessError: not all came in time (they are named), a number is taken twice, or the
            processes do not agree how many they are.
        """
        deadline = time.monotonic() + start_timeout
        if process == 0:
            listener = listener or listen(*address)
            jax = f"{jax_host}:{free_port()}" if jax_host else ""
            Hub(listener, count, start_timeout, peer_timeout, jax).start()
        line = _connect(address, process, count, deadline, start_timeout)
        line.send({"kind": "hello", "process": process, "count": count})
        # The hub gives up in time and says who is missing: it is given a little longer here.
        answer = line.receive(deadline + 5 - time.monotonic())
        if answer is None or answer["kind"] == "stop":
            reason = answer["text"] if answer else "process 0 went away during the start"
            line.close()
            raise ProcessError(reason)
        peers = cls(line, process, count, peer_timeout, answer["jax"])
        peers._thread.start()
        return peers

    def gather(self, name: str, value: Any, timeout: float) -> list[Any]:
        """Waits until every process calls this; returns their values, JSON, in process order.

        All processes must make the same calls in the same order. Where one does not come within
        `timeout` seconds, all are ended with a line that names it.
        """
        with self._changed:
            self._calls += 1
            key = f"{self._calls}: {name}"
        self._line.send({"kind": "value", "name": key, "value": value})
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._gathered, timeout):
                self._line.send({"kind": "late", "name": key, "seconds": timeout})
                self._changed.wait_for(lambda: key in self._gathered)
            return self._gathered.pop(key)

    def begin_loop(self) -> None:
        """Begins a new count of steps, in every process alike."""
        with self._changed:
            self._loop += 1

    def ask_to_stop(self) -> None:
        """Asks that all processes stop after the same step, as soon as possible."""
        self._line.send({"kind": "leave", "loop": self._loop})

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
        self._failing = True
        with self._changed:
            # An error of all processes, such as a wrong flag, is process 0's to tell.
            if self.process == 0 or not self._changed.wait_for(lambda: self._verdict, wait):
                self._line.send({"kind": "failed", "text": text})
                self._changed.wait_for(lambda: self._verdict, wait)
        verdict = self._verdict
        return verdict is None or verdict["process"] == self.process or verdict["text"] != text

    def leave(self, timeout: float) -> None:
        """Says goodbye: from now on nobody minds when this process ends. Process 0 waits for all.

        The hub is in process 0, so that one ends last.
        """
        self._leaving = True
        self._line.send({"kind": "bye"})
        if self.process == 0:
            self._left.wait(timeout)

    def named(self, process: int) -> str:
        """Returns "process 1 of 4"."""
        return f"process {process} of {self.count}"

    def _listen(self) -> None:
        while True:
            message = self._line.receive(self._timeout, beat=self._timeout / 4)
            if message is None:
                if not self._leaving:
                    self._stop({"process": 0, "text": "has gone", "gone": True})
                return
            handler = getattr(self, "_on_" + message.pop("kind"))
            with self._changed:
                handler(**message)
                self._changed.notify_all()

    def _on_values(self, name: str, values: list[Any]) -> None:
        self._gathered[name] = values

    def _on_ask(self, loop: int) -> None:
        self._answered[loop] = self._passed.get(loop, -1)
        self._line.send({"kind": "step", "loop": loop, "step": self._answered[loop]})

    def _on_last(self, loop: int, step: int) -> None:
        self._last[loop] = step

    def _on_bye(self) -> None:
        self._leaving = True
        self._left.set()

    def _on_stop(self, **verdict: Any) -> None:
        self._verdict = verdict
        if not self._failing or verdict["gone"]:
            self._stop(verdict)

    def _stop(self, verdict: dict[str, Any]) -> None:
        who = self.named(verdict["process"])
        if verdict["gone"]:
            again = "the same command continues from the last checkpoint"
            reason = f"{who} {verdict['text']}; {again}."
        elif verdict["process"] == self.process:
            reason = f"it {verdict['text']}"
        else:
            reason = f"{who} failed: {verdict['text']}"
        end(f"error: {self.named(self.process)} stops, because {reason}")


def end(line: str, status: int = 1) -> None:
    """Prints a line on stderr, if there is one, and ends the process at once, with no clean-up.

    Clean-up would wait for processes that do not answer any more.
    """
    if line:
        with contextlib.suppress(OSError, ValueError):
            os.write(2, f"{line}\n".encode())
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


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket: on loopback only where `host` is that, else on all interfaces.

    Raises:
      ProcessError: the port is taken.
    """
    local = host in ("localhost", "::1") or host.startswith("127.")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1" if local else "", port))
    except OSError as error:
        listener.close()
        raise ProcessError(
            f"--coordinator: port {port} cannot be opened on process 0: {error.strerror}."
        ) from error
    listener.listen(4096)
    return listener


def _connect(
    address: tuple[str, int], process: int, count: int, deadline: float, start_timeout: float
) -> Line:
    while True:
        try:
            return Line(socket.create_connection(address, timeout=5))
        except OSError as error:
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"process {process} of {count} waited {start_timeout:g} s: process 0 is "
                    f"missing, nothing answers at {address[0]}:{address[1]} ({error})."
                ) from error
            time.sleep(0.1)
