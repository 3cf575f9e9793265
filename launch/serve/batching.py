"""Dynamic batching: requests that wait together are computed together, in compiled sizes.

Rows of requests with the same further sizes are joined up to a largest batch and filled up to a
power of two, so that few programs are compiled, all of them before the model is ready. A row is
computed by itself: who shares its batch, and what fills it up, changes nothing.
"""

import asyncio
import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from launch.serve import traces
from launch.serve.joining import Arrays, Joiner, buckets
from launch.serve.metrics import Meter
from launch.serve.models import Servable
from launch.serve.refusal import Refused
from launch.serve.worker import Worker

_SHAPES = 64
"""Further sizes (as of lengths that vary) for which one model is compiled at the most."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """How requests are joined.

    Attributes:
      largest: rows of a batch.
      wait: seconds that the first of a batch waits for others.
      queue: requests that may wait, or be computed, for a model.
      timeout: seconds after which a call of the model counts as stuck.
    """

    largest: int = 32
    wait: float = 0.002
    queue: int = 256
    timeout: float = 30.0


@dataclasses.dataclass(eq=False)
class _Job:
    inputs: Arrays
    rows: int
    sizes: tuple  # of the inputs, without the batch: what is joined has them in common
    future: asyncio.Future
    arrived: float
    computed: tuple[float, float, int] = (0.0, 0.0, 0)  # seconds waited, of the call, its rows


class Batcher:
    """One version of a model, its queue and its thread. Belongs to one event loop.

    Attributes:
      ready: whether requests are taken.
      stuck_since: time.monotonic() at which a call was given up that still runs; None without.
    """

    def __init__(self, name: str, servable: Servable, policy: Policy, meter: Meter):
        self.ready, self.stuck_since = False, None
        self._servable, self._policy, self._meter = servable, policy, meter
        self._joiner = Joiner(servable)
        self._symbol = self._joiner.symbol
        if self._symbol and (most := servable.signature.symbols[self._symbol].most):
            self._policy = dataclasses.replace(policy, largest=min(policy.largest, most))
        self._jobs: list[_Job] = []
        self._waiting = 0
        self._usual = 1  # rows of the last batch
        self._came = asyncio.Event()
        self._worker = Worker(f"serve-{name}")
        self._shapes: set[tuple] = set()
        self._task: asyncio.Task | None = None

    async def start(self) -> None:
        """Compiles every bucket, then takes requests. Raises what the model raises."""
        for lengths in self._joiner.lengths():
            sizes = {self._symbol: 1} | lengths
            shapes = {
                name: [sizes.get(size, size) for size in tensor.shape]
                for name, tensor in self._servable.signature.inputs.items()
            }
            if any(isinstance(size, str) for shape in shapes.values() for size in shape):
                break  # sizes without an end are compiled when they are met
            dtypes = {n: tensor.dtype for n, tensor in self._servable.signature.inputs.items()}
            inputs = {name: np.zeros(shape, dtypes[name]) for name, shape in shapes.items()}
            for bucket in buckets(self._policy.largest if self._symbol else 1):
                await self._worker.call(self._joiner.call, [inputs], bucket)
            self._shapes.add(self._joiner.sizes(inputs))
        self._task = asyncio.create_task(self._run())
        self.ready = True

    async def close(self) -> None:
        """Takes no more requests, computes those that wait, and ends."""
        self.ready = False
        while self._waiting and self.stuck_since is None:
            await asyncio.sleep(0.01)
        if self._task:
            self._task.cancel()
        self._worker.close()
        self._meter.close()

    async def infer(self, inputs: Arrays, deadline: float) -> Arrays:
        """Returns the outputs for `inputs`, which fit the signature.

        Args:
          inputs: arrays; where there is a batch, all with the same number of rows, at least one.
          deadline: `time.monotonic()` at which the answer is of no use any more.

        Raises:
          Refused: not ready or stuck (503), queue full (429), too late (504), the model failed
            (500).
        """
        rows = self._joiner.rows(inputs)
        largest = self._policy.largest
        if self._symbol and rows > largest:
            parts = [
                {name: array[start : start + largest] for name, array in inputs.items()}
                for start in range(0, rows, largest)
            ]
        else:
            parts = [inputs]
        self.admit(len(parts))
        self._waiting += len(parts)
        try:
            jobs = [self._enqueue(part) for part in parts]
            done = await self._all_of(jobs, deadline)
        finally:
            self._waiting -= len(parts)
            self._meter.queue.set(self._waiting)
        waited, seconds, shared = jobs[0].computed
        traces.note(queue_seconds=waited, model_seconds=seconds, batch_rows=shared)
        if len(done) == 1:
            return done[0]
        return {name: np.concatenate([part[name] for part in done]) for name in done[0]}

    def admit(self, count: int = 1) -> None:
        """Raises Refused where so many requests cannot wait: not ready (503), queue full (429)."""
        if not self.ready:
            raise Refused(503, "not_ready", "the model is not ready.", retry_after=1)
        if count > self._policy.queue:
            most = self._policy.queue * self._policy.largest
            raise Refused(413, "too_large", f"more rows given than the {most} that may wait.")
        if self._waiting + count > self._policy.queue:
            line = f"{self._waiting} requests wait for this model already."
            raise Refused(429, "queue_full", line, retry_after=1)

    def _enqueue(self, inputs: Arrays) -> _Job:
        sizes = self._joiner.sizes(inputs)
        if sizes not in self._shapes:
            if len(self._shapes) >= _SHAPES:
                raise Refused(
                    400,
                    "malformed",
                    f"inputs of {_SHAPES} other sizes have come already; pad to one of those.",
                )
            self._shapes.add(sizes)
        rows = self._joiner.rows(inputs)
        future = asyncio.get_running_loop().create_future()
        job = _Job(inputs, rows, sizes, future, time.monotonic())
        self._jobs.append(job)
        self._meter.queue.set(self._waiting)
        self._came.set()
        return job

    async def _all_of(self, jobs: Sequence[_Job], deadline: float) -> list[Arrays]:
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                return await asyncio.gather(*(job.future for job in jobs))
        except TimeoutError as error:
            raise Refused(504, "deadline", "no result within the time that was left.") from error
        finally:
            for job in jobs:
                job.future.cancel()  # nothing where it is done; else it is not computed

    async def _run(self) -> None:
        while True:
            await self._came.wait()
            batch = await self._join()
            try:
                if batch:
                    await self._compute(batch)
            except Exception as error:  # a bug here must not end the loop: nobody would be served
                self._fail(batch, error)

    async def _join(self) -> list[_Job]:
        """Returns the next batch: jobs like the oldest, once it is full or has waited enough.

        Half as many rows as the last batch had are enough: a request that comes alone is computed
        at once, and of many clients one half is read and answered while the other is computed.
        """
        while True:
            self._jobs = [job for job in self._jobs if not job.future.done()]
            if not self._jobs:
                self._came.clear()
                return []
            first = self._jobs[0]
            batch, full = self._like(first)
            left = first.arrived + self._policy.wait - time.monotonic()
            enough = 2 * sum(job.rows for job in batch) >= self._usual
            if full or enough or left <= 0:
                self._usual = sum(job.rows for job in batch)
                self._jobs = [job for job in self._jobs if job not in batch]
                return batch
            self._came.clear()
            try:
                async with asyncio.timeout(left):
                    await self._came.wait()
            except TimeoutError:
                pass
            self._came.set()

    def _like(self, first: _Job) -> tuple[list[_Job], bool]:
        """Returns the jobs that can be computed with `first`, and whether no more would fit."""
        if not self._symbol:
            return [first], True
        batch, rows = [], 0
        for job in self._jobs:
            if job.sizes != first.sizes:
                continue
            if rows + job.rows > self._policy.largest:
                return batch, True
            batch.append(job)
            rows += job.rows
        return batch, rows == self._policy.largest

    async def _compute(self, batch: list[_Job]) -> None:
        rows = sum(job.rows for job in batch)
        limit = self._policy.largest
        bucket = next(size for size in buckets(limit) if size >= rows) if self._symbol else 1
        start = time.monotonic()
        for job in batch:
            self._meter.waited.observe(start - job.arrived)
        call = self._worker.call(self._joiner.call, [job.inputs for job in batch], bucket)
        done, _ = await asyncio.wait({call}, timeout=self._policy.timeout)
        if not done:
            await self._wait_for_stuck(batch, call)
            return
        seconds = time.monotonic() - start
        self._meter.batch(rows, bucket, seconds)
        for job in batch:
            job.computed = (start - job.arrived, seconds, rows)
        if (error := call.exception()) and len(batch) > 1:
            for job in batch:  # alone, so that nobody fails for what another has asked
                await self._compute([job])
        elif error:
            self._fail(batch, error)
        else:
            self._answer(batch, call.result())

    def _answer(self, batch: Sequence[_Job], parts: Sequence[Arrays]) -> None:
        for job, part in zip(batch, parts, strict=True):
            if not job.future.done():  # else its client has gone, or was told that it is too late
                job.future.set_result(part)
        # One of a batch: counting takes longer than many a model.
        self._meter.seen(batch[0].inputs, parts[0])

    def _fail(self, batch: Sequence[_Job], error: BaseException) -> None:
        self._meter.failed(error)
        line = "the model failed on this request; the server's log says why."
        _refuse(batch, Refused(500, "model", line))

    async def _wait_for_stuck(self, batch: list[_Job], call: asyncio.Future) -> None:
        """Refuses everyone until a call that takes too long comes back, if ever."""
        self.ready, self.stuck_since = False, time.monotonic()
        self._meter.stuck(self._policy.timeout)
        refused = Refused(503, "stuck", "the model does not answer.", retry_after=10)
        _refuse([*batch, *self._jobs], refused)
        await asyncio.wait({call})
        call.exception()  # seen, so that asyncio does not complain that nobody looked
        self.ready, self.stuck_since = True, None


def _refuse(jobs: Sequence[_Job], refused: Refused) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(refused)
