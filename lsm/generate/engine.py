"""Many requests on one decoder: they join a batch that runs, and leave it, each for itself."""

import collections
import dataclasses
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from lsm.errors import ConfigError, LsmError
from lsm.generate.requests import (
    ClosedError,
    Counters,
    FaultError,
    Listener,
    QueueFullError,
    Request,
    Ticket,
)
from lsm.generate.seats import Seats
from lsm.generate.slots import Chosen, Slots
from lsm.generate.writing import Piece, Writing, check_ids

_log = logging.getLogger("lsm.generate")


class Engine:
    """Writes texts for requests that come and go (continuous batching, Orca, Yu et al. 2022).

    A request takes a slot of the cache when one is free. Its prompt is read in chunks, of which
    one at the most comes between two tokens of the texts that are under way. All of these get
    their next token in one compiled step; a text that ends leaves its slot at once.

    What is written is what `lsm.generate.write` writes of the same prompt, sampling and seed, up
    to rounding, whoever else is there. The chunks that a prompt shares with an earlier one, still
    in a slot, are not read again.

    One thread calls `step`, or `run`; all other methods are for any thread.

    Attributes:
      slots: the model and its cache.
      waiting: requests that may wait for a slot.
      healthy: False once the model has failed twice on end: all is refused then.
    """

    def __init__(
        self,
        slots: Slots,
        text: Callable[[Sequence[int]], str],
        waiting: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Takes `text`, ids to text, and a clock, in seconds."""
        self.slots, self.waiting, self.healthy = slots, waiting, True
        self._text, self._clock = text, clock
        self._changed = threading.Condition()
        self._queue: collections.deque[Ticket] = collections.deque()
        self._closed = False
        self._began: float | None = None
        self._stopped = self._failed = False
        self._ended: collections.Counter[str] = collections.Counter()
        self._counters = Counters(steps=(0,) * (slots.count + 1))
        self._empty()

    def _empty(self) -> None:
        self._seats = Seats(self.slots)
        self._pending: collections.deque[tuple[Chosen, dict[int, Ticket]]] = collections.deque()

    def submit(self, request: Request, listen: Listener) -> Ticket:
        """Takes a request; its text comes to `listen`, which must not wait.

        Raises:
          ConfigError: the prompt is empty, has an id that the model does not know, or does not fit
            into a slot with the text.
          QueueFullError: `waiting` requests wait.
          ClosedError: the engine was drained, closed, or has failed.
        """
        self._check(request)
        # A copy: who asks may write the next prompt into the same array.
        request = dataclasses.replace(request, prompt=np.array(request.prompt, np.int32))
        ticket = Ticket(request, listen, self._clock(), self._wake)
        with self._changed:
            if self._closed or not self.healthy:
                why = "closes" if self.healthy else "has failed"
                raise ClosedError(f"generate: the engine {why}; it takes no requests.")
            if len(self._queue) >= self.waiting:
                raise QueueFullError(
                    f"generate: {len(self._queue)} requests wait, and allowed are {self.waiting}; "
                    "come back later."
                )
            self._queue.append(ticket)
            self._changed.notify_all()
        return ticket

    def _check(self, request: Request) -> None:
        prompt, longest = np.asarray(request.prompt), request.stop.longest
        if prompt.ndim != 1 or prompt.dtype.kind not in "iu" or not len(prompt):
            raise ConfigError(
                f"prompt: {prompt.dtype} {prompt.shape} given; ids (n,) are needed, one or more."
            )
        check_ids(prompt, self.slots.decoder.vocabulary)
        if len(prompt) + longest > self.slots.length:
            raise ConfigError(
                f"prompt: {len(prompt)} tokens given and {longest} to come; allowed together: "
                f"{self.slots.length}."
            )

    def pieces(self, request: Request) -> Iterator[Piece]:
        """Yields the pieces of a request, while another thread runs the engine.

        To close the iterator gives the request up.

        Raises:
          LsmError: as `submit`, or what ended the text.
        """
        given: queue.SimpleQueue[Piece | LsmError] = queue.SimpleQueue()
        ticket, finish = self.submit(request, given.put), None
        try:
            while not finish:
                piece = given.get()
                if isinstance(piece, LsmError):
                    raise piece
                yield piece
                finish = piece.finish
        finally:
            ticket.cancel()

    def drain(self) -> None:
        """Takes no more requests; those that were taken are written, and `run` returns."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """As `drain`, but what is under way ends with ClosedError at the next step."""
        self._stopped = True
        self.drain()

    def run(self) -> None:
        """Steps while there is something to do, and waits for more; returns after `drain`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.busy or self._closed or not self.healthy)
                if not self.busy:
                    return
            self.step()

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._queue or self._pending or self._seats.taken)

    @property
    def stepping(self) -> float:
        """Seconds since the step that is under way began; 0 between steps."""
        began = self._began
        return 0.0 if began is None else self._clock() - began

    @property
    def counters(self) -> Counters:
        """What was done so far."""
        return dataclasses.replace(
            self._counters,
            waiting=len(self._queue),
            running=len(self._seats.taken),
            positions=self._seats.positions,
            ended=dict(self._ended),
        )

    def step(self) -> None:
        """Goes on by one token in each text, and by a chunk of the prompts that are not read yet.

        The device is at work on the next tokens while the last ones are given out. Where the model
        fails, all requests in slots end with FaultError; those that wait stay.
        """
        self._began = began = self._clock()
        try:
            self._end_those_over(began)
            self._admit()
            self._add(read=self._seats.read())
            found, texts = self._seats.draw()
            if texts:
                self._pending.append((found, texts))
            if len(self._pending) > bool(texts):
                self._give_out()
                self._failed = False
        except Exception as error:  # whatever a device or a model can raise
            _log.exception("generate: a step failed.")
            self._fail(error)
        else:
            if texts:
                self._count_step(len(texts), self._clock() - began)
        finally:
            self._began = None

    def _end_those_over(self, now: float) -> None:
        with self._changed:
            over = [(ticket, error) for ticket in self._queue if (error := self._over(ticket, now))]
            for ticket, _ in over:
                self._queue.remove(ticket)
        for slot, ticket in self._seats.taken.items():
            if error := self._over(ticket, now):
                self._seats.leave(slot)
                over.append((ticket, error))
        for ticket, error in over:
            self._end(ticket, error)

    def _over(self, ticket: Ticket, now: float) -> LsmError | None:
        closed = ClosedError("generate: the engine closes; the text ends here.")
        return closed if self._stopped else ticket.over(now)

    def _admit(self) -> None:
        while len(self._seats.taken) < self.slots.count:
            if not self._queue:
                return
            ticket = self._queue[0]  # until it has a slot, so that a fault loses none
            request = ticket.request
            there = self._seats.take(ticket, Writing(self._text, request.stop, request.prompt))
            with self._changed:
                self._queue.popleft()
            self._add(reused=there)

    def _give_out(self) -> None:
        """Gives out what the oldest step has drawn."""
        found, live = self._pending.popleft()
        found = jax.device_get(found)
        for slot, ticket in live.items():
            if (seat := self._seats.seats[slot]).ticket is not ticket:  # it has left since
                continue
            piece = _piece(seat.writing, ticket.request, found, slot)
            if not math.isfinite(piece.log_probability):
                self._seats.clear(slot)
                self._end(ticket, FaultError("generate: the model's logits are not finite."))
                continue
            self._add(tokens=1)
            if seat.writing.number == 1:
                self._add(first_tokens=1, first_token_seconds=self._clock() - ticket.since)
            if piece.finish:
                self._seats.leave(slot)
                self._ended[piece.finish] += 1
            self._tell(ticket, piece)

    def _end(self, ticket: Ticket, error: LsmError) -> None:
        self._ended[type(error).__name__] += 1
        self._tell(ticket, error)

    def _tell(self, ticket: Ticket, given: Piece | LsmError) -> None:
        try:
            ticket.listen(given)
        except Exception:  # whoever asked is not there: nobody else may suffer
            _log.exception("generate: a listener failed; its request is cancelled.")
            ticket.cancel()

    def _fail(self, error: Exception) -> None:
        """Ends all that is under way; the cache is made anew, or the engine ends."""
        line = FaultError(f"generate: the model failed: {type(error).__name__}: {error}")
        ended = [*self._seats.taken.values()]
        again, self._failed = self._failed, True
        self._add(faults=1)
        self._empty()
        try:
            if again:
                raise error
            self.slots.reset()
        except Exception:
            with self._changed:
                self.healthy = False
                ended += self._queue
                self._queue.clear()
        for ticket in ended:
            self._end(ticket, line)

    def _add(self, **more: float) -> None:
        now = {name: getattr(self._counters, name) + value for name, value in more.items()}
        self._counters = dataclasses.replace(self._counters, **now)

    def _count_step(self, texts: int, seconds: float) -> None:
        steps = list(self._counters.steps)
        steps[texts] += 1
        self._counters = dataclasses.replace(self._counters, steps=tuple(steps))
        self._add(step_seconds=seconds)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _piece(writing: Writing, request: Request, found: Chosen, slot: int) -> Piece:
    row, few = found.slots.index(slot), slice(request.likeliest)
    told = found.likeliest_NxM[row, few], found.log_probability_NxM[row, few]
    likeliest = tuple(zip(*(x.tolist() for x in told), strict=True))
    return writing.add(int(found.token_N[row]), float(found.log_probability_N[row]), likeliest)
