"""The hub of a run's processes, a thread of process 0; `lsm.processes.peers` is the other end."""

import collections
import contextlib
import json
import selectors
import socket
import threading
import time
from typing import Any

from lsm.errors import listed

_TICK = 0.25
"""Seconds between looks at the clock."""

_LATE = 5.0
"""Seconds for which a verdict is told to those who come late."""

Message = dict[str, Any]


class Line:
    """A TCP connection that carries JSON objects, one a line."""

    def __init__(self, connection: socket.socket):
        connection.settimeout(_TICK)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._received = b""
        self._ready: collections.deque[Message] = collections.deque()
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Sends a message. Where that fails the line is cut, and its reader sees the end."""
        with self._sending:
            try:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                with contextlib.suppress(OSError):
                    self.socket.shutdown(socket.SHUT_RDWR)

    def pull(self) -> list[Message]:
        """Waits a tick at the most; returns the messages that came.

        Raises:
          EOFError: the other end has closed, or what it sends is no message.
        """
        try:
            piece = self.socket.recv(65536)
        except TimeoutError:
            return []
        except OSError as error:
            raise EOFError from error
        *lines, self._received = (self._received + piece).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError as error:
            raise EOFError from error
        if not piece:
            raise EOFError
        return messages

    def receive(self, timeout: float, beat: float | None = None) -> Message | None:
        """Returns the next message, beats left out; None at the end of the line or of the time.

        Args:
          timeout: seconds; with `beat` they begin anew with every sign of life.
          beat: seconds between the signs of life that are sent meanwhile.
        """
        heard = beaten = time.monotonic()
        while True:
            while self._ready:
                message = self._ready.popleft()
                if message["kind"] != "beat":
                    return message
            try:
                messages = self.pull()
            except EOFError:
                return None
            self._ready.extend(messages)
            now = time.monotonic()
            if messages and beat is not None:
                heard = now
            if now > heard + timeout:
                return None
            if beat is not None and now > beaten + beat:
                self.send({"kind": "beat"})
                beaten = now

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()


class Hub(threading.Thread):
    """Listens to all processes; tells all what concerns all. Ends with its process."""

    def __init__(
        self,
        listener: socket.socket,
        count: int,
        start_timeout: float,
        peer_timeout: float,
        coordinator: str,
    ):
        """Takes an open listener; see `Peers.start` for the rest."""
        super().__init__(name="hub", daemon=True)
        self._listener, self._count, self._coordinator = listener, count, coordinator
        self._start_timeout, self._peer_timeout = start_timeout, peer_timeout
        self._selector = selectors.DefaultSelector()
        self._lines: dict[int, Line] = {}
        self._heard: dict[int, float] = {}
        self._left: set[int] = set()
        self._values: dict[str, dict[int, Any]] = {}
        self._steps: dict[int, dict[int, int]] = {}
        self._verdict: Message | None = None
        self._until = float("inf")

    def run(self) -> None:
        """Serves until the run is stopped, and a little longer, to tell those who come late."""
        began = beaten = time.monotonic()
        self._selector.register(self._listener, selectors.EVENT_READ)
        while time.monotonic() < self._until:
            for key, _ in self._selector.select(_TICK):
                self._accept() if key.data is None else self._pull(key.data)
            now = time.monotonic()
            if self._verdict is not None:
                continue
            if len(self._heard) < self._count:
                if now > began + self._start_timeout:
                    self._stop(0, self._missing(self._heard, self._start_timeout, "the start"))
                continue
            if now > beaten + self._peer_timeout / 4:
                self._tell({"kind": "beat"})
                beaten = now
            for process, heard in self._heard.items():
                if now > heard + self._peer_timeout and process not in self._left:
                    silence = f"has not been heard of for {self._peer_timeout:g} s"
                    self._stop(process, silence, gone=True)
        self._listener.close()

    def _accept(self) -> None:
        line = Line(self._listener.accept()[0])
        self._selector.register(line.socket, selectors.EVENT_READ, line)

    def _pull(self, line: Line) -> None:
        process = next((p for p, known in self._lines.items() if known is line), None)
        try:
            for message in line.pull():
                if process is None:
                    process = self._welcome(line, **message)
                else:
                    self._heard[process] = time.monotonic()
                    getattr(self, "_on_" + message.pop("kind"))(process, **message)
        except (EOFError, TypeError):  # TypeError: a stranger's message
            self._selector.unregister(line.socket)
            line.close()
            if process is not None and process not in self._left:
                self._stop(process, "has gone (killed, or its machine lost)", gone=True)

    def _welcome(self, line: Line, *, kind: str, process: int, count: int) -> int:
        if count != self._count:
            text = f"process 0 counts {self._count} processes, and process {process} {count}"
            self._stop(process, text)
        elif process in self._lines:
            self._stop(process, f"two processes have --process={process}")
        if self._verdict is not None:
            line.send(self._verdict)
            return process
        self._lines[process] = line
        self._heard[process] = time.monotonic()
        if len(self._heard) == self._count:
            self._tell({"kind": "welcome", "jax": self._coordinator})
        return process

    def _on_beat(self, process: int) -> None:
        pass  # that it was heard is noted

    def _on_value(self, process: int, name: str, value: Any) -> None:
        given = self._values.setdefault(name, {})
        given[process] = value
        if len(given) == self._count:
            del self._values[name]
            values = [given[p] for p in range(self._count)]
            self._tell({"kind": "values", "name": name, "values": values})

    def _on_late(self, process: int, name: str, seconds: float) -> None:
        if name in self._values:
            what = name.split(": ", 1)[1]
            self._stop(process, self._missing(self._values[name], seconds, what))

    def _on_leave(self, process: int, loop: int) -> None:
        if loop not in self._steps:
            self._steps[loop] = {}
            self._tell({"kind": "ask", "loop": loop})

    def _on_step(self, process: int, loop: int, step: int) -> None:
        steps = self._steps[loop]
        steps[process] = step
        if len(steps) == self._count:
            self._tell({"kind": "last", "loop": loop, "step": max(steps.values()) + 1})

    def _on_failed(self, process: int, text: str) -> None:
        self._stop(process, text)

    def _on_bye(self, process: int) -> None:
        self._left.add(process)
        if len(self._left) == self._count:
            self._tell({"kind": "bye"})

    def _missing(self, there: Any, seconds: float, what: str) -> str:
        absent = [str(p) for p in range(self._count) if p not in there]
        word = "process" if len(absent) == 1 else "processes"
        verb = "is" if len(absent) == 1 else "are"
        return (
            f"waited {seconds:g} s at {what}: {word} {listed(absent)} of {self._count} {verb} "
            "missing"
        )

    def _stop(self, process: int, text: str, gone: bool = False) -> None:
        if self._verdict is None:
            self._verdict = {"kind": "stop", "process": process, "text": text, "gone": gone}
            self._until = time.monotonic() + _LATE
            self._tell(self._verdict)

    def _tell(self, message: Message) -> None:
        for process in sorted(self._lines, reverse=True):  # process 0, which may end of it, last
            self._lines[process].send(message)
