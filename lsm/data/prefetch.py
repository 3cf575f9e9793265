"""Batches prepared in the background while the device computes."""

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Any

from lsm.data.dataset import Columns


class Prefetcher:
    """Iterates over `prepare(task)` for each of `tasks`, in order.

    A context manager. Threads prepare at most `ahead` tasks more than were taken. As `prepare` is
    a pure function, such as a `batch_at` of its step, nothing depends on which thread does what.

        with Prefetcher(batches.batch_at, range(step, steps)) as prefetcher:
            for batch in prefetcher:
                ...
    """

    def __init__(
        self,
        prepare: Callable[[Any], Columns],
        tasks: Iterable[Any],
        workers: int = 1,
        ahead: int = 8,
        waiting: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        """Starts the threads.

        Args:
          prepare: called from several threads if `workers` > 1.
          tasks: what it is called with; read no further than is prepared.
          workers: number of threads, at least 1.
          ahead: most tasks ready or in work at a time; raised to `workers` if below.
          waiting: its context is entered while the consumer waits.
        """
        self._prepare, self._tasks, self._waits = prepare, iter(tasks), waiting
        self._taken = self._begun = 0  # tasks handed out; tasks that a worker took on
        self._ahead = max(ahead, workers)
        self._ready: dict[int, Columns | BaseException] = {}  # an error comes in its batch's place
        self._closed = self._waiting = self._exhausted = False
        self._changed = threading.Condition()
        # Daemons: a read that hangs (a dead network disk) must not keep the process alive.
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> Columns:
        """Returns the next batch.

        Raises:
          StopIteration: there are no more tasks, or the prefetcher was closed.
          Exception: whatever `prepare` raised for this task.
        """
        with self._changed:
            if self._taken not in self._ready:
                self._wait()
            if self._closed or self._taken not in self._ready:
                raise StopIteration
            batch = self._ready.pop(self._taken)
            self._taken += 1
            # Workers sleep until half the batches are gone: to wake one for each would cost more
            # than a small batch itself.
            if self._begun - self._taken <= self._ahead // 2:
                self._changed.notify_all()
        if isinstance(batch, BaseException):
            self.close()
            raise batch
        return batch

    def close(self) -> None:
        """Stops the threads; waits at most a second for one that is in the middle of a batch."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        for thread in self._threads:
            # `prepare` may close us from a worker, which cannot wait for itself.
            if thread is not threading.current_thread():
                thread.join(timeout=1.0 / len(self._threads))

    def _wait(self) -> None:
        self._waiting = True
        with self._waits():
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or self._taken in self._ready
                    or (self._exhausted and self._taken >= self._begun)
                )
            )
        self._waiting = False

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._may_begin)
                if self._closed or self._exhausted:
                    return
                try:
                    task = next(self._tasks)
                except StopIteration:
                    self._exhausted = True
                    self._changed.notify_all()
                    return
                number = self._begun
                self._begun += 1
            try:
                # Without the lock: here the time goes.
                batch = self._prepare(task)
            except BaseException as error:
                batch = error  # the consumer raises it, where it belongs
            with self._changed:
                if self._closed:
                    return
                self._ready[number] = batch
                # A consumer that is busy, or waits for another task, would be woken in vain.
                if self._waiting and number == self._taken:
                    self._changed.notify_all()

    def _may_begin(self) -> bool:
        return self._closed or self._exhausted or self._begun < self._taken + self._ahead
