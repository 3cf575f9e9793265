"""Requests to a server on this machine, and how long the answers took, for `serve`."""

import asyncio
import dataclasses
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
    """

    seconds: float
    answers: Sequence[tuple[int, float]]

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


class Connection:
    """One connection that is kept alive, and opened again where the server has closed it."""

    def __init__(self, port: int):
        self._port, self._streams = port, None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Returns status and body.

        Raises:
          OSError, EOFError: the server ended it without an answer.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(_LENGTH.search(head)[1]))
        except BaseException:
            self.close()
            raise
        if b"\r\nconnection: close" in head.lower():
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        """Closes it; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


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
    start, answers = time.perf_counter() + _BEGINNING, []

    async def one() -> None:
        connection = Connection(port)
        while (begun := time.perf_counter()) < start + seconds:
            answer = await _timed(connection, request, begun)
            if begun >= start:
                answers.append(answer)
        connection.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return Load(time.perf_counter() - start, answers)


async def at_rate(port: int, request: bytes, rate: float, seconds: float) -> Load:
    """Sends requests at random times, `rate` a second, whether answered or not (an open loop).

    An answer's time counts from when its request was due, so that a client that is held up does
    not flatter the server.
    """
    gaps = np.random.default_rng(0).exponential(1 / rate, int(rate * seconds))
    free: list[Connection] = []
    tasks, start = [], time.perf_counter()

    async def one(due: float) -> tuple[int, float]:
        connection = free.pop() if free else Connection(port)
        answer = await _timed(connection, request, due)
        free.append(connection)
        return answer

    for due in start + np.cumsum(gaps):
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        tasks.append(asyncio.create_task(one(due)))
    took = time.perf_counter() - start
    done, late = await asyncio.wait(tasks, timeout=_GRACE)
    for task in late:
        task.cancel()
    answers = [task.result() for task in done] + await asyncio.gather(*late)
    for connection in free:
        connection.close()
    return Load(took, answers)
