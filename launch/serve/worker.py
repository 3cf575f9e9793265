"""A thread that computes, one call after the other."""

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import Callable
from typing import Any


class WorkerDied(RuntimeError):
    """The thread ended in the middle of a call; the next call gets a new one."""


class Worker:
    """One thread, which never keeps the process alive, however long a call takes."""

    def __init__(self, name: str):
        self._name, self._calls = name, queue.SimpleQueue()
        self._start()

    def call(self, function: Callable, *args: Any) -> asyncio.Future:
        """Returns a future of the running event loop with what `function(*args)` returns."""
        future = concurrent.futures.Future()
        self._calls.put((future, function, args))
        return asyncio.wrap_future(future)

    def close(self) -> None:
        """Lets the thread end once it has done what it was given."""
        self._calls.put(None)

    def _start(self) -> None:
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function, args = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function(*args)
            except Exception as error:
                future.set_exception(error)
            except BaseException as error:  # asyncio would end the server with it
                self._start()  # before anyone hears of it: no call is left to a thread that ends
                future.set_exception(WorkerDied(f"{type(error).__name__} in the worker"))
                return
            else:
                future.set_result(result)
            del call, future, function, args  # not to be held until the next one comes
