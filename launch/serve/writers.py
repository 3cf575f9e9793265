"""Decoders that write texts: an engine in a thread, and the requests of an event loop."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import pathlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence

from launch.command import LaunchError, require_installed
from launch.serve import traces
from launch.serve.metrics import Metrics
from launch.serve.refusal import Refused, malformed
from lsm.data.texts.codec import Codec, TokenCodec
from lsm.errors import ConfigError, LsmError, shortened
from lsm.generate import (
    ClosedError,
    DeadlineError,
    Engine,
    Piece,
    QueueFullError,
    Request,
    Slots,
    Ticket,
)
from lsm.train.trained import Trained, load

_log = logging.getLogger("launch.serve")
_LOOK = 0.5  # seconds without a piece, after which to look why


@dataclasses.dataclass(frozen=True)
class Room:
    """What a decoder has for those who ask.

    Attributes:
      slots: texts that are written at a time.
      tokens: of prompt and text together, at the most; less where the model's context is.
      queue: requests that may wait for a slot.
      timeout: seconds after which a step of the model counts as stuck.
    """

    slots: int = 8
    tokens: int = 2048
    queue: int = 256
    timeout: float = 30.0


class Writer:
    """A model that writes texts for many at a time. Belongs to one event loop.

    Attributes:
      name: as clients call it.
      codec: its texts to ids and back.
      length: tokens of prompt and text together, at the most.
      room: how many, and how long.
      step: updates that made its weights.
      since: when it was loaded, in seconds since 1970.
      reason: why it cannot be had; "" where it can.
    """

    def __init__(self, name: str, run: Trained, room: Room, metrics: Metrics):
        """Takes a run that is loaded. Raises LsmError where it writes no texts, or not so."""
        self.name, self.codec, self.room, self.step = name, run.codec, room, run.step
        self.length = min(room.tokens, run.decoder.context or room.tokens)
        self.since, self.reason = int(time.time()), ""
        self._metrics = metrics
        slots = Slots(run.decoder, count=room.slots, length=self.length)
        self._engine = Engine(slots, self.codec.text, waiting=room.queue)
        self._thread: threading.Thread | None = None

    @property
    def vocabulary(self) -> int:
        """How many ids the model knows, from 0 on."""
        return self._engine.slots.decoder.model.vocabulary

    @property
    def ready(self) -> bool:
        """Whether requests are taken: it is compiled, has not failed, and is not stuck."""
        engine = self._engine
        stuck = engine.stepping >= self.room.timeout
        return self._thread is not None and engine.healthy and not stuck

    async def start(self) -> None:
        """Compiles every program, then takes requests; where that fails, `reason` says why."""
        try:
            await asyncio.to_thread(self._engine.slots.compile)
        except Exception as error:  # whatever a device or a model can raise
            self.reason = f"cannot be run: {shortened(' '.join(str(error).split()), 200)}"
            _log.error("%s: %s", self.name, self.reason, exc_info=True)
            return
        run, name = self._engine.run, f"serve-{self.name}"
        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()
        self._metrics.engines.by_model[self.name] = self._engine
        _log.info("%s: ready", self.name)

    async def close(self) -> None:
        """Ends what is under way, and the thread, if it comes back at all."""
        self._engine.close()
        if self._thread:
            await asyncio.to_thread(self._thread.join, 5)

    def submit(self, requests: Sequence[Request]) -> "Texts":
        """Returns the texts of requests, all taken or none.

        Raises:
          Refused: not ready or stuck (503), the queue is full (429), a prompt cannot be (400).
        """
        if not self.ready:
            line = f"{self.name} {self.reason or 'is not ready'}.".replace("..", ".")
            raise Refused(503, "not_ready", line, retry_after=1)
        if len(requests) > self.room.queue:
            raise malformed(f"{len(requests)} texts asked for; {self.room.queue} may wait.")
        return Texts(self._engine, requests, self._first_token, self.room.timeout)

    def _first_token(self, seconds: float) -> None:
        self._metrics.first_token.labels(self.name).observe(seconds)


class Texts:
    """Texts that an engine writes, piece by piece; `close` gives up those that go on."""

    def __init__(
        self, engine: Engine, requests: Sequence[Request], first: Callable, timeout: float
    ):
        """Submits the requests.

        Args:
          engine: what writes them.
          requests: each with its `seconds`.
          first: is told the seconds to the first token of each.
          timeout: seconds after which a step of the model counts as stuck.

        Raises:
          Refused: one is not taken; the others are given up.
        """
        self._engine, self._timeout = engine, timeout
        self._loop, self._came = asyncio.get_running_loop(), asyncio.Queue()
        self._tickets: list[Ticket] = []
        self._since, self._first_token = time.monotonic(), first
        self._deadline = self._since + min(request.seconds for request in requests)
        self._left = set(range(len(requests)))
        try:
            for number, request in enumerate(requests):
                listen = functools.partial(self._listen, number)
                self._tickets.append(engine.submit(request, listen))
        except LsmError as error:
            self.close()
            raise _refused(error) from error

    def _listen(self, number: int, given: Piece | LsmError) -> None:
        self._loop.call_soon_threadsafe(self._came.put_nowait, (number, given))

    def close(self) -> bool:
        """Frees the slots of all that go on, within a step; says whether there were any."""
        going = [ticket for number, ticket in enumerate(self._tickets) if number in self._left]
        for ticket in going:
            ticket.cancel()
        return bool(going)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yields pieces with the numbers of their requests, until all have ended.

        Raises:
          Refused: one has ended in another way, or the model is stuck; the others are given up.
        """
        started: set[int] = set()
        while self._left:
            number, given = await self._next()
            if isinstance(given, LsmError):
                self._left.discard(number)
                self.close()
                raise _refused(given) from given
            if number not in started:
                started.add(number)
                seconds = time.monotonic() - self._since
                self._first_token(seconds)
                traces.note(first_token_seconds=seconds)
            if given.finish:
                self._left.discard(number)
            yield number, given

    async def _next(self) -> tuple[int, Piece | LsmError]:
        """Returns what comes; an engine whose step never ends tells nobody, so that this looks."""
        while self._came.empty():  # else no clock is needed, at thousands of pieces a second
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    return await self._came.get()
            if self._engine.stepping >= self._timeout:
                self.close()
                raise Refused(503, "stuck", "the model does not answer.", retry_after=10)
            if time.monotonic() >= self._deadline:
                self.close()
                raise _late()
        return self._came.get_nowait()


def _refused(error: LsmError) -> Refused:
    line = str(error).removeprefix("generate: ")
    if isinstance(error, QueueFullError):
        return Refused(429, "queue_full", line, retry_after=1)
    if isinstance(error, ClosedError):
        return Refused(503, "draining", line, retry_after=5)
    if isinstance(error, DeadlineError):
        return _late()
    if isinstance(error, ConfigError):  # of what was asked for
        return malformed(line)
    return Refused(500, "model", "the model failed on this request; the server's log says why.")


def _late() -> Refused:
    return Refused(504, "deadline", "the text was not done within the time that was left.")


def load_writer(name: str, folder: pathlib.Path, room: Room, metrics: Metrics) -> Writer:
    """Returns the model of a run's workdir. Raises LsmError where it writes no texts."""
    try:
        run = load(folder)
    except LsmError as error:
        raise LaunchError(f"{name}={folder}: {error}") from error
    try:
        run.decoder  # noqa: B018
    except ConfigError as error:
        line = "it writes no texts; what predicts is exported first: python -m lsm.export."
        raise LaunchError(f"{name}={folder}: {line}") from error
    try:
        _require_libraries(run.codec)
        return Writer(name, run, room, metrics)
    except LsmError as error:
        raise LaunchError(f"{name}={folder}: {error}") from error


def _require_libraries(codec: Codec) -> None:
    """Raises LaunchError where one is missing, which the first request would find else."""
    if isinstance(codec, TokenCodec):
        template = ("jinja2",) if codec.encoder.chat else ()
        require_installed("text", ("tokenizers", *template))


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder is the workdir of a run, of which texts are written."""
    return (folder / "checkpoints").is_dir()
