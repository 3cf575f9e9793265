"""The hub of a run's processes, threads of process 0; `lsm.processes.peers` is the other end.

A message is a JSON object on a line. Processes send hello, beat, at, leave, step, failed and bye;
the hub sends welcome, beat, ask, last, stop and bye. Whatever else comes is ignored: a port is open
to strangers.
"""

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any

from lsm.errors import ProcessError, listed

AGAIN = "the same command continues from the last checkpoint."

_TICK = 0.25
"""Seconds between looks at the clock."""

_LIMIT = 1 << 16
"""Bytes that are read of a line, at the most."""


def send(connection: socket.socket, **message: Any) -> None:
    """Sends a message. Where that fails, the one who listens to the connection sees its end."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def listen(connection: socket.socket, timeout: float, hear: Callable[[Any], None]) -> str:
    """Calls `hear` with every JSON value that comes; returns how it ended, said of the sender.

    After `timeout` seconds of silence it ends too.
    """
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(timeout)
        with connection.makefile("rb") as stream:
            while line := stream.readline(_LIMIT):
                hear(_parsed(line))
    except TimeoutError:
        return f"has not been heard of for {timeout:g} s"
    except OSError:
        pass
    return "has gone (killed, or its machine lost)"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


class Hub(socketserver.ThreadingTCPServer):
    """Listens to all processes; tells all what concerns all. Ends with its process.

    Each connection has a thread, which sleeps until something comes.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 4096

    def __init__(
        self,
        address: tuple[str, int],
        count: int,
        *,
        start_timeout: float,
        peer_timeout: float,
        patience: float = 1800.0,
        coordinator: str = "",
    ):
        """Opens the port and serves: on loopback only where the host is that, else everywhere.

        Args:
          address: host and port; port 0 is one that is free.
          count: number of processes.
          start_timeout: seconds to wait for all to come.
          peer_timeout: seconds of silence after which a process is taken for lost.
          patience: seconds to wait at later points, where one may be at work alone: building a
            dataset, drawing curves.
          coordinator: "host:port" for `jax.distributed`, told to all.

        Raises:
          ProcessError: the port is taken.
        """
        host, port = address
        local = host in ("localhost", "::1") or host.startswith("127.")
        try:
            super().__init__(("127.0.0.1" if local else "", port), socketserver.BaseRequestHandler)
        except OSError as error:
            raise ProcessError(
                f"--coordinator: port {port} cannot be opened on process 0: {error.strerror}."
            ) from error
        self._count, self._coordinator = count, coordinator
        self._timeout, self._patience = peer_timeout, patience
        self._lock = threading.Lock()
        self._connections: dict[int, socket.socket] = {}
        self._points: dict[int, int] = {}  # process -> the last point that it has come to
        self._meeting = (0, "the start", start_timeout, time.monotonic())  # of the furthest
        self._steps: dict[int, dict[int, int]] = {}  # loop -> process -> step
        self._left: set[int] = set()
        self._verdict: dict[str, Any] = {}
        threading.Thread(target=self.serve_forever, args=(_TICK,), name="hub", daemon=True).start()

    def finish_request(self, request: socket.socket, client_address: Any) -> None:
        """Serves one connection until its end, in a thread of its own."""
        process = None

        def hear(message: Any) -> None:
            nonlocal process
            with self._lock:
                if process is None:
                    process = self._welcome(request, message)
                else:
                    self._hear(process, message)

        ended = listen(request, self._timeout, hear)
        with self._lock:
            if process is not None and len(self._left) < self._count:
                self._stop(process, f"process {process} of {self._count} {ended}; {AGAIN}")

    def service_actions(self) -> None:
        """Looks at the clock; called every tick."""
        with self._lock:
            point, name, patience, began = self._meeting
            absent = [p for p in range(self._count) if self._points.get(p, -1) < point]
            if absent and time.monotonic() > began + patience:
                who = f"{listed(map(str, absent))} of {self._count}"
                missing = f"process {who} is" if len(absent) == 1 else f"processes {who} are"
                self._stop(absent[0], f"{missing} missing, after {patience:g} s at {name}.")

    def _welcome(self, connection: socket.socket, message: Any) -> int | None:
        """Returns the number of a process that says hello, or None for one that is not let in."""
        match message:
            case {"kind": "hello", "process": int(process), "count": int(count)} if (
                0 <= process < count
            ):
                objection = self._objection(process, count)
            case _:
                return None
        verdict = self._verdict
        if objection and len(self._connections) < self._count:
            verdict = self._stop(process, objection)
        elif objection:  # all are here: it concerns nobody but the one who came
            verdict = _verdict(process, objection)
        if verdict:
            send(connection, **verdict)
            return None
        self._connections[process], self._points[process] = connection, 0
        if len(self._connections) == self._count:
            self._tell(kind="welcome", jax=self._coordinator)
        return process

    def _objection(self, process: int, count: int) -> str:
        if count != self._count:
            return f"process 0 counts {self._count} processes, and process {process} {count}."
        if process in self._connections:
            return f"two processes have --process={process}."
        return ""

    def _hear(self, process: int, message: Any) -> None:
        match message:
            case {"kind": "beat"}:
                send(self._connections[process], kind="beat")
            case {"kind": "at", "point": int(point), "name": str(name)}:
                self._points[process] = point
                if point > self._meeting[0]:
                    self._meeting = (point, name, self._patience, time.monotonic())
            case {"kind": "leave", "loop": int(loop)} if loop not in self._steps:
                self._steps[loop] = {}
                self._tell(kind="ask", loop=loop)
            case {"kind": "step", "loop": int(loop), "step": int(step)} if loop in self._steps:
                steps = self._steps[loop]
                steps[process] = step
                if len(steps) == self._count:
                    self._tell(kind="last", loop=loop, step=max(steps.values()) + 1)
            case {"kind": "failed", "text": str(text)}:
                self._stop(process, f"process {process} of {self._count} failed: {text}", text)
            case {"kind": "bye"}:
                self._left.add(process)
                if len(self._left) == self._count:
                    self._tell(kind="bye")

    def _stop(self, process: int, reason: str, error: str = "") -> dict[str, Any]:
        """Ends all processes, once; returns what they were told."""
        if not self._verdict:
            self._verdict = _verdict(process, reason, error)
            self._tell(**self._verdict)
        return self._verdict

    def _tell(self, **message: Any) -> None:
        for process in sorted(self._connections, reverse=True):  # 0, which may end of it, last
            send(self._connections[process], **message)


def _verdict(process: int, reason: str, error: str = "") -> dict[str, Any]:
    return {"kind": "stop", "process": process, "reason": reason, "error": error}
