# ruff: noqa: E402
"""A server in a thread, on a port of its own, with models that need no compiler."""

import contextlib
import dataclasses
import http.client
import json
import socket
import threading
import time

import numpy as np
import pytest

for needed in ("starlette", "uvicorn", "uvloop", "httptools", "prometheus_client", "orjson"):
    pytest.importorskip(needed, reason="the extra `serve` is not installed")

import uvloop

from launch.serve import app, keys, logs, server, traces
from launch.serve.batching import Policy
from launch.serve.metrics import Metrics
from launch.serve.repository import Repository
from launch.serve.writers import Room, Writer


@dataclasses.dataclass(frozen=True)
class Tensor:
    shape: tuple
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Range:
    least: int = 1
    most: int | None = None


@dataclasses.dataclass(frozen=True)
class Signature:
    inputs: dict
    outputs: dict
    symbols: dict = dataclasses.field(default_factory=lambda: {"b": Range(), "t": Range()})


class Double:
    """y = 2 x + version, of three numbers a row. Notes the batches it sees; `hold` stops it."""

    labels = ("a", "b", "c")

    def __init__(self, dtype=np.float32, version=0):
        rows = {"x": Tensor(("b", 3), np.dtype(dtype))}
        self.signature = Signature(rows, {"y": Tensor(("b", 3), np.dtype(dtype))})
        self.version, self.batches, self.hold = version, [], threading.Event()
        self.hold.set()
        self.error = None

    def __call__(self, inputs):
        self.batches.append(len(inputs["x"]))
        self.hold.wait(20)
        if self.error:
            raise self.error
        return {"y": inputs["x"] * np.asarray(2, inputs["x"].dtype) + self.version}


def folder_of(tmp_path, versions=("1",)):
    """Folders that look like artefacts; the tests' `load` never reads them."""
    for number in versions:
        (tmp_path / number).mkdir(parents=True, exist_ok=True)
        (tmp_path / number / "signature.json").write_text("{}")
    return tmp_path


SECRETS = {scope: keys.new_key(scope, [scope], None, None) for scope in keys.Scope}
"""A key of each scope alone: (what the caller sends, the entry of the file)."""


@dataclasses.dataclass
class Running:
    port: int
    gate: object
    repository: object
    server: object
    loop: object

    def request(self, method, path, body=None, headers=None, key="infer"):
        """Returns (status, headers, body) of one request with the key of a scope; None sends none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        secret = SECRETS[key][0] if key in SECRETS else key
        sent = {"Authorization": f"Bearer {secret}"} if key else {}
        if isinstance(body, dict | list):
            body = json.dumps(body)
        try:
            connection.request(method, path, body, sent | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def json(self, *args, **more):
        status, _, body = self.request(*args, **more)
        return status, json.loads(body)

    def infer(self, rows, model="double", **more):
        rows = np.asarray(rows).tolist()
        x = {"name": "x", "datatype": "FP32", "shape": [len(rows), 3], "data": rows}
        return self.json("POST", f"/v2/models/{model}/infer", {"inputs": [x]}, **more)


@contextlib.contextmanager
def serving(
    tmp_path,
    loads=None,
    policy=Policy(wait=0.0),
    bounds=app.Bounds(),
    patience=5.0,
    more=(),
    wait=True,
    runs=None,
    room=Room(),
    requests=256,
    traced=None,
):
    """Runs a server of `loads`, name: load, and of `runs` that write, until the block ends.

    `traced` is a provider of spans.
    """
    if loads is None:
        loads = {"double": lambda folder: Double()}
    folders = {name: tmp_path / name for name in loads}
    for folder in folders.values():
        if not folder.exists():
            folder_of(folder)
    file = tmp_path / "keys.json"
    keys.write(file, [entry for _, entry in SECRETS.values()])
    metrics = Metrics()
    by_folder = {folders[name]: load for name, load in loads.items()}
    writers = [Writer(name, run, room, metrics) for name, run in (runs or {}).items()]
    repository = Repository(
        folders, lambda folder: by_folder[folder.parent](folder), policy, metrics, writers
    )
    audit = logs.Audit(tmp_path / "audit.jsonl")
    gate = app.application(repository, keys.Keys(file), metrics, audit, bounds, more)
    outer = traces.around(gate, traced) if traced else None
    running = server.configured(
        gate, outer, seconds=patience, connections=64, requests=requests, grace=5
    )
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    loop = uvloop.new_event_loop()
    thread = threading.Thread(
        target=loop.run_until_complete, args=[running.serve(sockets=[listener])], daemon=True
    )
    thread.start()
    here = Running(port, gate, repository, running, loop)
    try:
        until(lambda: running.started and (repository.ready or not wait), 60)
        yield here
    finally:
        running.should_exit = True
        thread.join(15)
        assert not thread.is_alive()
        loop.close()


def until(true, seconds=10):
    """Waits until `true()`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)
