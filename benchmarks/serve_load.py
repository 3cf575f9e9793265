"""Requests to a server on this machine, and how long the answers took, for `serve`."""

import asyncio
import dataclasses
import functools
import re
import time
from collections.abc import Sequence

import numpy as np

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_GRACE = 10.0  # seconds that answers are waited for, once nothing is sent any more
_BEGINNING = 0.5  # seconds in which connections are opened, of which nothing counts


@dataclasses.dataclass(frozen=True)
class Load:
    """What a load came to.

    Attributes:
      seconds: from the first request to the last answer, or to when no more were sent.
      answers: status of each request (0: none came) and the seconds that it took.
      cpus: CPU seconds a second that this client took.
    """

    seconds: float
    answers: Sequence[tuple[int, float]]
    cpus: float

    def rate(self, within: float = np.inf) -> float:
        """Returns the good answers a second that took no longer than `within` seconds."""
        return sum(s == 200 and t <= within for s, t in self.answers) / self.seconds

    def percentile(self, q: float) -> float:
        """Returns the q-th percentile, in seconds, of the good answers; NaN without any."""
        times = [t for s, t in self.answers if s == 200]
        return float(np.percentile(times, q)) if times else np.nan

    def count(self, *statuses: int) -> int:
        """Returns how many answers have one of these."""
        return sum(s in statuses for s, _ in self.answers)


class Connection(asyncio.Protocol):
    """One connection that is kept alive, and opened again where the server has closed it.

    A protocol without streams and tasks: what the client takes of the CPUs, the server lacks.
    """

    def __init__(self, port: int):
        self._port, self._transport = port, None
        self._came, self._answer = b"", None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Returns status and body.

        Raises:
          OSError, EOFError: the server ended it without an answer.
        """
        if not self.open:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: self, "127.0.0.1", self._port)
        try:
            return await self.send(request)
        except BaseException:
            self.close()
            raise

    def send(self, request: bytes) -> asyncio.Future:
        """Returns a future of the same, on a connection that is open and asks for nothing else."""
        self._came, self._answer = b"", asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    @property
    def open(self) -> bool:
        """Whether it can be sent on."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Closes it; the next request opens another."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport):
        """Keeps the transport."""
        self._transport = transport

    def data_received(self, data):
        """Gives the answer out once it is whole."""
        self._came += data
        end = self._came.find(b"\r\n\r\n") + 4
        head, body = self._came[:end], self._came[end:]
        if end < 4 or len(body) < int(_LENGTH.search(head)[1]):
            return
        if b"\r\nconnection: close" in head.lower():
            self.close()
        if not self._answer.done():
            self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc):
        """Gives out that no answer comes any more."""
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc or EOFError("the server has closed the connection"))


def post(path: str, body: bytes) -> bytes:
    """Returns an HTTP request with a body of JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _timed(connection: Connection, request: bytes, begun: float) -> tuple[int, float]:
    try:
        status, _ = await connection.ask(request)
    except (OSError, EOFError, asyncio.CancelledError):
        status = 0
    return status, time.perf_counter() - begun


async def in_turn(port: int, request: bytes, connections: int, seconds: float) -> Load:
    """Sends the next request on each connection when the last is answered (a closed loop)."""
    begun_at, start, answers = _now(), time.perf_counter() + _BEGINNING, []

    async def one() -> None:
        connection = Connection(port)
        while (begun := time.perf_counter()) < start + seconds:
            answer = await _timed(connection, request, begun)
            if begun >= start:
                answers.append(answer)
        connection.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return Load(time.perf_counter() - start, answers, _cpus(begun_at))


async def at_rate(port: int, request: bytes, rate: float, seconds: float) -> Load:
    """Sends requests at random times, `rate` a second, whether answered or not (an open loop).

    An answer's time counts from when its request was due, so that a client that is held up does
    not flatter the server.
    """
    lead, count = int(rate * _BEGINNING), int(rate * seconds)
    dues = np.cumsum(np.random.default_rng(0).exponential(1 / rate, lead + count))
    free: list[Connection] = []
    under_way: set[asyncio.Future] = set()
    answers: list[tuple[int, float]] = []

    def ended(due: float, connection: Connection, answer: asyncio.Future) -> None:
        failed = answer.cancelled() or answer.exception() is not None
        if due >= start:
            answers.append((0 if failed else answer.result()[0], time.perf_counter() - due))
        under_way.discard(answer)
        free.append(connection)

    begun_at = _now()
    dues += time.perf_counter()
    start = dues[lead]
    for due in dues:
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        connection = free.pop() if free else Connection(port)
        if connection.open:
            answer = connection.send(request)
        else:
            answer = asyncio.ensure_future(connection.ask(request))
        under_way.add(answer)
        answer.add_done_callback(functools.partial(ended, due, connection))
    took, cpus = time.perf_counter() - start, _cpus(begun_at)
    if under_way:
        _, late = await asyncio.wait(set(under_way), timeout=_GRACE)
        for answer in late:
            answer.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await asyncio.sleep(0)  # for `ended`
    for connection in free:
        connection.close()
    return Load(took, answers, cpus)


def _now() -> np.ndarray:
    return np.array([time.process_time(), time.perf_counter()])


def _cpus(begun: np.ndarray) -> float:
    cpu, wall = _now() - begun
    return cpu / wall
