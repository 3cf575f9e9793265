"""The hub of a run's processes, threads of process 0; `lsm.processes.peers` is the other end.

A message is a JSON object on a line. Processes send hello, beat, at, leave, step, failed and bye;
the hub sends welcome, beat, ask, last, stop and bye. A port is open to strangers: who does not
begin with a hello that knows the secret of the run is not listened to any further.
"""

import contextlib
import hmac
import json
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from lsm.errors import ProcessError, listed

AGAIN = "the same command continues from the last checkpoint."

_TICK = 0.25
"""Seconds between looks at the clock."""

_LIMIT = 1 << 16
"""Bytes that are read of a line, at the most."""

_HELLO = 10.0
"""Seconds of silence before a hello, at the most."""

_GRACE = 1.0
"""Seconds that process 0 outlives a verdict for the others: JAX's service is in it, and who finds
that gone says so in fifteen lines."""

_STRANGERS = 256
"""Connections, beyond one of each process, that are held at a time: each has a thread."""

_log = logging.getLogger("lsm")


def send(connection: socket.socket, **message: Any) -> None:
    """Sends a message. Where that fails, the one who listens to the connection sees its end."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def listen(connection: socket.socket, timeout: float, hear: Callable[[Any], Any]) -> str:
    """Calls `hear` with every JSON value that comes; returns how it ended, said of the sender.

    After `timeout` seconds of silence it ends too, and where `hear` has heard enough: returns True.
    """
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(timeout)
        with connection.makefile("rb") as stream:
            while line := stream.readline(_LIMIT):
                if hear(_parsed(line)):
                    break
    except TimeoutError:
        return f"has not been heard of for {connection.gettimeout():g} s"
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

    Attributes:
      ignored: connections of strangers so far.
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
        secret: str = "",
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
          secret: what a process must know to be listened to.

        Raises:
          ProcessError: the port is taken.
        """
        host, port = address
        self.address_family, host = _listening(host)
        try:
            super().__init__((host, port), socketserver.BaseRequestHandler)
        except OSError as error:
            raise ProcessError(
                f"--coordinator: port {port} cannot be opened on process 0: {error.strerror}."
            ) from error
        self._count, self._coordinator, self._secret = count, coordinator, secret
        self._places, self.ignored = threading.BoundedSemaphore(count + _STRANGERS), 0
        self._timeout, self._patience = peer_timeout, patience
        self._lock = threading.Lock()
        self._connections: dict[int, socket.socket] = {}
        self._points: dict[int, int] = {}  # process -> the last point that it has come to
        self._meeting = (0, "the start", start_timeout, time.monotonic())  # of the furthest
        self._steps: dict[int, dict[int, int]] = {}  # loop -> process -> step
        self._left: set[int] = set()
        self._verdict: dict[str, Any] = {}
        self._ends = 0.0  # when process 0 is told the verdict at the latest
        threading.Thread(target=self.serve_forever, args=(_TICK,), name="hub", daemon=True).start()

    def server_bind(self) -> None:
        """Takes the port, of IPv4 too."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def verify_request(self, request: socket.socket, client_address: Any) -> bool:
        """Returns whether there is place for one more connection."""
        return self._places.acquire(blocking=False)

    def finish_request(self, request: socket.socket, client_address: Any) -> None:
        """Serves one connection until its end, in a thread of its own."""
        process = None

        def hear(message: Any) -> bool:
            nonlocal process
            with self._lock:
                if process is not None:
                    self._hear(process, message)
                elif hello := _hello(message, self._secret):
                    request.settimeout(self._timeout)
                    process = self._welcome(request, *hello)
                else:
                    self._ignore(request, client_address[0])
                    return True
            return False

        try:
            ended = listen(request, _HELLO, hear)
        finally:
            self._places.release()
        with self._lock:
            if process is not None and len(self._left) < self._count:
                del self._connections[process]
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
            if self._verdict:
                self._tell_0()

    def _ignore(self, connection: socket.socket, host: str) -> None:
        send(connection, **_verdict(0, "process 0 knows another LSM_SECRET than this process."))
        self.ignored += 1
        if self.ignored == 1:
            _log.warning(
                "port %d: %s does not belong to this run and is ignored, as others will be",
                *(self.server_address[1], host),
            )

    def _welcome(self, connection: socket.socket, process: int, count: int) -> int | None:
        """Returns the number of a process that says hello, or None for one that is not let in."""
        objection, verdict = self._objection(process, count), self._verdict
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
        """Ends all processes, once, process 0 after the others; returns what they are told."""
        if not self._verdict:
            self._verdict = _verdict(process, reason, error)
            self._ends = time.monotonic() + _GRACE
            self._tell(**self._verdict, to=self._connections.keys() - {0})
        self._tell_0()
        return self._verdict

    def _tell_0(self) -> None:
        """Tells process 0 the verdict where the others have gone, or had their time."""
        if not self._connections.keys() - {0} or time.monotonic() > self._ends:
            self._tell(**self._verdict, to=self._connections.keys() & {0})

    def _tell(self, *, to: Iterable[int] | None = None, **message: Any) -> None:
        # 0 last: a goodbye ends it, and the hub with it.
        for process in sorted(self._connections if to is None else to, reverse=True):
            send(self._connections[process], **message)


def _listening(host: str) -> tuple[int, str]:
    """Returns family and address at which to listen for those who call for `host`."""
    if host == "localhost" or host.startswith("127."):
        return socket.AF_INET, "127.0.0.1"
    if host == "::1":
        return socket.AF_INET6, host
    # A name may lead the others to another address than it leads to here.
    return (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "")


def _hello(message: Any, secret: str) -> tuple[int, int] | None:
    """Returns process and count of a hello that knows the secret, else None."""
    match message:
        case {
            "kind": "hello",
            "process": int(process),
            "count": int(count),
            "secret": str(given),
        } if 0 <= process < count and hmac.compare_digest(_bytes(given), _bytes(secret)):
            return process, count
    return None


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # JSON may hold half a character


def _verdict(process: int, reason: str, error: str = "") -> dict[str, Any]:
    return {"kind": "stop", "process": process, "reason": reason, "error": error}
