"""uvicorn, with an end that waits for those who are being served."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from launch.serve.connections import Patient
from launch.serve.gate import Gate
from launch.serve.logs import log

PARENT = "LSM_SERVE_PARENT"
"""Environment variable with the id of the process that restarts this one."""


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

    class Protocol(Patient):
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
