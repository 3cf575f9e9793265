"""Batches prepared in the background while the device computes."""

import contextlib
import threading
from collections.abc import Callable

from lsm.data.dataset import Columns


class Prefetcher:
    """Iterates over `batch_at(start)`, `batch_at(start + 1)`, ... `batch_at(stop - 1)`, in order.

    A context manager. Threads compute at most `ahead` batches more than were taken. As `batch_at`
    is a pure function of the step, nothing depends on which thread computes what.

        with Prefetcher(batches.batch_at, start=step, stop=steps) as prefetcher:
            for batch in prefetcher:
                ...
    """

    def __init__(
        self,
        batch_at: Callable[[int], Columns],
        start: int,
        stop: int,
        workers: int = 1,
        ahead: int = 8,
        waiting: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        """Starts the threads.

        Args:
          batch_at: from a step to its batch; called from several threads if `workers` > 1.
          start: first step.
          stop: one beyond the last step.
          workers: number of threads, at least 1.
          ahead: most batches ready or in work at a time; raised to `workers` if below.
          waiting: its context is entered while the consumer waits for a batch.
        """
        self._batch_at, self._stop, self._waits = batch_at, stop, waiting
        self._taken = self._begun = start  # steps handed out; steps that a worker took on
        self._ahead = max(ahead, workers)
        self._ready: dict[int, Columns | BaseException] = {}  # an error comes in its batch's place
        self._closed = self._waiting = False
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
          StopIteration: `stop` is reached, or the prefetcher was closed.
          Exception: whatever `batch_at` raised for this step.
        """
        with self._changed:
            if self._taken not in self._ready:
                self._wait()
            if self._closed or self._taken >= self._stop:
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
            # `batch_at` may close us from a worker, which cannot wait for itself.
            if thread is not threading.current_thread():
                thread.join(timeout=1.0 / len(self._threads))

    def _wait(self) -> None:
        self._waiting = True
        with self._waits():
            self._changed.wait_for(
                lambda: self._closed or self._taken in self._ready or self._taken >= self._stop
            )
        self._waiting = False

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._may_begin)
                if self._closed or self._begun >= self._stop:
                    return
                step = self._begun
                self._begun += 1
            try:
                # Without the lock: here the time goes.
                batch = self._batch_at(step)
            except BaseException as error:
                batch = error  # the consumer raises it, at the step where it belongs
            with self._changed:
                if self._closed:
                    return
                self._ready[step] = batch
                # A consumer that is busy, or waits for another step, would be woken in vain.
                if self._waiting and step == self._taken:
                    self._changed.notify_all()

    def _may_begin(self) -> bool:
        return self._closed or self._begun >= self._stop or self._begun < self._taken + self._ahead
