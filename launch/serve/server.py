"""uvicorn, with patience that ends and an end that waits for those who are being served."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from launch.serve.gate import Gate
from launch.serve.logs import log

PARENT = "LSM_SERVE_PARENT"
"""Environment variable with the id of the process that restarts this one."""

_HEAD_BYTES = 64 * 1024
_LEAVE = 1.0  # seconds
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)


def _unavailable(line: str, more: str = "") -> bytes:
    body = f'{{"error": "{line}"}}'
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    )
    return f"{head}{more}Content-Length: {len(body)}\r\n\r\n{body}".encode()


_BUSY = _unavailable("more requests are under way than can be answered in time.")
_FULL = _unavailable("no more connections are taken.", "Connection: close\r\n")


class Server(uvicorn.Server):
    """Ends on SIGTERM and SIGINT once what is under way is done; new requests get 503 meanwhile.

    A second signal does not wait. The exit status is 0 (uvicorn itself would raise the signal once
    more).
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, grace: float):
        super().__init__(config)
        self._gate, self._grace = gate, grace
        self._draining: asyncio.Task | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hears the signals while the server runs, where this is the main thread."""
        loop = asyncio.get_running_loop()
        main = threading.current_thread() is threading.main_thread()
        heard = (signal.SIGTERM, signal.SIGINT) if main else ()
        for number in heard:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in heard:
                loop.remove_signal_handler(number)

    async def on_tick(self, counter: int) -> bool:
        """Ends too where the process that would restart this one has gone."""
        parent = os.environ.get(PARENT)
        if parent and os.getppid() != int(parent) and not self._gate.draining:
            self.stop()
        return await super().on_tick(counter)

    def stop(self) -> None:
        """Refuses new requests and ends when those under way are done, or the grace is over."""
        if self._gate.draining:
            self.should_exit = True
            return
        self._gate.draining = True
        log.info("draining: %s requests under way", self._gate.in_flight)
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        end = time.monotonic() + self._grace
        while self._gate.in_flight and time.monotonic() < end:
            await asyncio.sleep(0.02)
        self.should_exit = True


def configured(
    gate: Gate,
    app: ASGIApp | None = None,
    *,
    seconds: float,
    connections: int,
    requests: int,
    grace: float,
    **more,
) -> Server:
    """Returns a server that is about to run.

    Args:
      gate: what refuses and drains.
      app: the application; None is the gate alone.
      seconds: until the head of a request has come, the first or the next of a connection, and
        until a client takes what it is sent.
      connections: how many at a time; further ones get 503, and are closed.
      requests: how many under way; further ones for inference get 503, before they are read.
      grace: seconds for what is under way at the end.
      more: of `uvicorn.Config`: certificates.
    """

    class Protocol(_Patient):
        patience, most_connections, most = seconds, connections, requests
        shed = staticmethod(gate.shed)

    config = uvicorn.Config(
        app or gate,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # else who asks could say who asks
        timeout_keep_alive=seconds,
        timeout_graceful_shutdown=max(1, round(grace)),
        **more,
    )
    return Server(config, gate, grace)


class _Patient(HttpToolsProtocol):
    """Closes connections whose client sends its head, or takes its answer, too slowly.

    uvicorn waits for ever in both cases, and for heads without an end. And refuses what comes on
    top of `most` requests under way without parsing it: to refuse at twice the capacity must cost
    next to nothing, or else it takes the time of those that are answered.
    """

    patience, most_connections, most = 15.0, 1024, 256
    _head = _writing = None
    _pending = 0  # bytes of a request since its last part was whole; 0 between requests

    def connection_made(self, transport):
        super().connection_made(_HeadWithBody(transport, self.loop))
        # asyncio does so only where the listening socket names TCP; without it, each piece of a
        # stream waits 40 ms for the acknowledgement of the one before.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await_head()
        # Not uvicorn's own limit, at which those that are connected already get nothing either.
        self._excess = len(self.connections) > self.most_connections

    def data_received(self, data):
        if self._excess:
            self.transport.write(_FULL)
            self.transport.close()
            return
        if len(self.tasks) >= self.most and self._is_idle() and _is_whole(data):
            self.transport.write(_BUSY)
            self.shed()
            return
        self._unset_keepalive_if_required()
        self._pending += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._pending > _HEAD_BYTES:
            self.send_400_response("The head of the request is too long.")
        self._await_head()

    def _feed(self, data: bytes) -> None:
        """Reads on; who would rather speak another protocol (as Java does) is answered in this one.

        After such a head, httptools reads no body: it is read again without that wish.
        """
        while data:
            parser = self.parser
            try:
                parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                version = parser.get_http_version().encode()
                lines = [b"%s %s HTTP/%s" % (parser.get_method(), self.url, version)]
                lines += [b"%s: %s" % line for line in self.headers if line[0] != b"upgrade"]
                data = b"\r\n".join([*lines, b"", data[upgrade.args[0] :]])
                self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self):
        self._pending = self._pending or 1
        super().on_message_begin()

    def on_headers_complete(self):
        self._pending = 1
        if not self._is_read_again():
            super().on_headers_complete()

    def on_chunk_header(self):
        self._pending = 1

    def on_body(self, body):
        self._pending = 1
        super().on_body(body)

    def on_message_complete(self):
        self._pending = 0
        if not self._is_read_again():
            super().on_message_complete()

    def _is_read_again(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def send_400_response(self, msg):
        """Refuses what is no request; not in the middle of the answer to one before."""
        cycle = self.cycle
        if cycle and (self.pipeline or cycle.response_started) and not cycle.response_complete:
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def shutdown(self):
        """Ends what is idle. TLS would wait half a minute for a client to take its leave."""
        super().shutdown()
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LEAVE, self.transport.abort)

    def _is_idle(self) -> bool:
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self._pending

    def _await_head(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if not idle and self._head:
            self._head.cancel()
            self._head = None
        elif idle and not self._head:
            self._head = self.loop.call_later(self.patience, self._give_up)

    def _give_up(self) -> None:
        self._head = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def pause_writing(self):
        super().pause_writing()
        self._writing = self._writing or self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self):
        super().resume_writing()
        if self._writing:
            self._writing.cancel()
            self._writing = None

    def connection_lost(self, exc):
        for timer in (self._head, self._writing):
            if timer:
                timer.cancel()
        super().connection_lost(exc)
        # Where the client has reset the connection, uvicorn leaves a timer that holds it for
        # seconds: thousands of connections, where each has one request.
        self._unset_keepalive_if_required()


class _HeadWithBody:
    """A transport that sends the head of an answer together with what follows it.

    uvicorn writes them one after the other: two calls of the system, and a client that wakes twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport, self._loop, self._head = transport, loop, b""

    def write(self, data: bytes) -> None:
        """Keeps a head until the next write, for which it does not wait once the loop turns."""
        if not self._head and data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        head, self._head = self._head, b""
        self._transport.write(head + data)

    def close(self) -> None:
        """Closes it once all is written."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str):
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._head:
            self.write(b"")


def _is_whole(data: bytes) -> bool:
    """Whether it is one request for inference, whole: what comes next is another."""
    end = data.find(b"\r\n\r\n") + 4
    head = data[: max(end, 0)]
    if not head.startswith(b"POST /v2/models/"):
        return False
    lower, lengths = head.lower(), _LENGTH.findall(head)
    if b"\r\ntransfer-encoding:" in lower or b"\r\nconnection: close" in lower:
        return False
    return len(lengths) == 1 and end + int(lengths[0]) == len(data) and b" HTTP/1.1\r\n" in head
