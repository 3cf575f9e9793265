"""Connections of clients: patience that ends, heads that end, refusals at next to no cost."""

import asyncio
import re
import socket
from collections.abc import Callable

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_BYTES = 64 * 1024
_PIPELINED = 100  # requests that a connection may send ahead of their answers
_LEAVE = 1.0  # seconds
_WHOLE = re.compile(
    rb"POST /v2/models/[!-~]+ HTTP/1\.1\r\n(?:[-!#$%&'*+.^_`|~0-9A-Za-z]+:[\t -~]*\r\n)+\r\n"
)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n")


def _unavailable(line: str, more: str = "") -> bytes:
    body = f'{{"error": "{line}"}}'
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    )
    return f"{head}{more}Content-Length: {len(body)}\r\n\r\n{body}".encode()


_BUSY = _unavailable("more requests are under way than can be answered in time.")
_FULL = _unavailable("no more connections are taken.", "Connection: close\r\n")


class Patient(HttpToolsProtocol):
    """Closes connections whose client sends its head, or takes its answer, too slowly.

    uvicorn waits for ever in both cases, and for heads without an end. And refuses what comes on
    top of `most` requests under way without parsing it: to refuse at twice the capacity must cost
    next to nothing, or else it takes the time of those that are answered.

    Attributes:
      patience: seconds for a head, and for a client that takes nothing.
      most_connections: further ones are refused and closed.
      most: requests under way; further ones for inference are refused.
      shed: is told of each of those.
    """

    patience: float
    most_connections: int
    most: int
    shed: Callable[[], None]
    _head = _writing = _running = None
    _pending = 0  # bytes of a request since its last part was whole; 0 between requests
    _in_body = False

    def connection_made(self, transport):
        """Waits for the first head."""
        super().connection_made(_HeadWithBody(transport, self.loop))
        # asyncio does so only where the listening socket names TCP; without it, each piece of a
        # stream waits 40 ms for the acknowledgement of the one before.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await_head()
        # Not uvicorn's own limit, at which those that are connected already get nothing either.
        self._excess = len(self.connections) > self.most_connections

    def data_received(self, data):
        """Reads on, or refuses."""
        if self._excess:
            self.transport.write(_FULL)
            self.transport.close()
            return
        self._unset_keepalive_if_required()
        if self._is_shed(data):
            self.transport.write(_BUSY)
            self.shed()
            self._forget_head()
        else:
            self._pending += len(data)
            try:
                self._feed(data)
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
            if self._pending > _HEAD_BYTES:
                self.send_400_response("The head of the request is too long.")
        self._await_head()

    def _is_shed(self, data: bytes) -> bool:
        busy = len(self.tasks) >= self.most and not self._writing
        return busy and self._is_idle() and not self._pending and _is_whole(data)

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
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's

    def on_message_begin(self):
        """A request has begun."""
        self._pending, self._in_body = self._pending or 1, False
        super().on_message_begin()

    def on_header(self, name, value):
        """A line of its head, or a trailer, which nobody who checks heads has seen: left out."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self):
        """Its head is whole: what no server may take, or no queue, is an error."""
        self._pending, self._in_body = 1, True
        version = self.parser.get_http_version()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or version not in ("1.0", "1.1") or (version == "1.1" and not hosts):
            raise httptools.HttpParserError("RFC 9112, 3.2: a request names one host")
        if self.parser.get_method() == b"CONNECT" or len(self.pipeline) >= _PIPELINED:
            raise httptools.HttpParserError("a tunnel, or too many requests at a time")
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_chunk_header(self):
        """A piece of its body is about to come."""
        self._pending = 1

    def on_body(self, body):
        """Some of its body."""
        self._pending = 1
        super().on_body(body)

    def on_message_complete(self):
        """It is whole."""
        self._pending = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg):
        """Refuses what is no request, in an answer of its own or without one."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            super().send_400_response(msg)
        elif not cycle.more_body:  # it comes behind a request, which is answered yet
            cycle.keep_alive = False
            self.flow.pause_reading()
        elif cycle.response_started or self.pipeline:
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def _start_asgi_task(self, cycle, app):
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def shutdown(self):
        """Ends what is idle. TLS would wait half a minute for a client to take its leave."""
        super().shutdown()
        if self._is_idle():
            self.loop.call_later(_LEAVE, self.transport.abort)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        if not self._is_idle():
            self._forget_head()
        elif not self._head:
            self._head = self.loop.call_later(self.patience, self._give_up)

    def _forget_head(self) -> None:
        if self._head:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._head = None
        if self._is_idle():
            self.transport.abort()

    def pause_writing(self):
        """The client does not take what it is sent."""
        super().pause_writing()
        self._writing = self._writing or self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self):
        """It does."""
        super().resume_writing()
        if self._writing:
            self._writing.cancel()
            self._writing = None

    def connection_lost(self, exc):
        """The client has gone: whatever is under way for it is told."""
        for timer in (self._head, self._writing):
            if timer:
                timer.cancel()
        super().connection_lost(exc)
        # Of several requests, uvicorn tells the last that its client has gone, not the first.
        if self._running and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
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
        if self._transport.is_closing():
            self._head = b""
            return
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
    """Whether it is one request for inference, whole: what comes next is another.

    Whatever the parser might read otherwise is left to it.
    """
    end = data.find(b"\r\n\r\n") + 4
    head = data[: max(end, 0)]
    if not _WHOLE.fullmatch(head):
        return False
    lower = head.lower().replace(b"\r\nconnection: keep-alive\r\n", b"\r\n")
    if b"\r\ntransfer-encoding:" in lower or b"\r\nconnection:" in lower:
        return False
    if lower.count(b"\r\ncontent-length:") != 1 or lower.count(b"\r\nhost:") != 1:
        return False
    length = _LENGTH.search(lower)
    return length is not None and end + int(length[1]) == len(data)
