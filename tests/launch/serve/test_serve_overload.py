"""More requests than can be answered: refused at next to no cost, and nobody else is disturbed."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import numpy as np
import pytest
from serving import SECRETS, Double, serving, until

from benchmarks import serve_load
from launch.serve.batching import Policy

X = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
BODY = json.dumps({"inputs": [X]}).encode()
BUSY = b'{"error": "more requests are under way than can be answered in time."}'


def request(body=BODY, path="/v2/models/double/infer", more=""):
    key = SECRETS["infer"][0]
    lines = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{more}"
    return f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def answer(client):
    """Returns status and body of the next answer on a connection."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += client.recv(4096) or pytest.fail("closed without an answer")
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(4096)
    return int(head[9:12]), body


@contextlib.contextmanager
def busy(tmp_path, **more):
    """A server that takes two requests and has them, and a connection to it."""
    model, found = Double(), []
    policy = Policy(wait=0.0, largest=1)
    with serving(tmp_path, {"double": lambda folder: model}, policy, requests=2, **more) as server:
        model.batches.clear()
        model.hold.clear()
        threads = [
            threading.Thread(target=lambda: found.append(server.infer([[1, 2, 3]])))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(server.server.server_state.tasks) == 2)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            yield server, model, client
        model.hold.set()
        for thread in threads:
            thread.join()
        assert [status for status, _ in found] == [200, 200]


def test_what_is_too_much_is_refused_unread_and_the_connection_goes_on(tmp_path):
    with busy(tmp_path) as (server, model, client):
        for _ in range(2):
            client.sendall(request())
            assert answer(client) == (503, BUSY)
        assert server.gate.in_flight == 2
        model.hold.set()
        until(lambda: not server.server.server_state.tasks)
        client.sendall(request())
        status, body = answer(client)
        assert (status, json.loads(body)["outputs"][0]["data"]) == (200, [2, 4, 6])
        _, _, metrics = server.request("GET", "/metrics", key="metrics")
        assert b'lsm_errors_total{kind="overload"} 2.0' in metrics


def test_who_is_refused_again_and_again_stays_connected(tmp_path):
    with busy(tmp_path, patience=0.3) as (_, _, client):
        for _ in range(10):
            client.sendall(request(more="Connection: keep-alive\r\n"))
            assert answer(client) == (503, BUSY)
            time.sleep(0.1)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",  # a probe
        request(path="/v2/repository/index"),
        request(b"no chunk\r\n", more="Transfer-Encoding: chunked\r\n"),
        request(more="Content-Length: 5\r\n"),
        request(more="Connection: close\r\n"),
        request() + request(),
        request().replace(b"HTTP/1.1", b"HTTP/1.0"),
        request().replace(b"Content-Length: ", b"Content-Length: 5\r\nContent-Length: "),
        request(more="Transfer-Encoding : chunked\r\n"),
        request(more="X: y\nTransfer-Encoding: chunked\r\n"),
        request(more="X: \0\r\n"),
        request(more="Host: y\r\n"),
        request().replace(b" HTTP/1.1", b" HTTP/1.0\r\nX: HTTP/1.1"),
    ],
    ids=[
        *("probe", "admin", "chunked", "two lengths", "closing", "two requests", "old"),
        *(
            "lengths side by side",
            "blank",
            "bare newline",
            "zero",
            "two hosts",
            "old, and says not",
        ),
    ],
)
def test_what_is_no_request_for_inference_alone_goes_the_usual_way(tmp_path, sent):
    with busy(tmp_path) as (_, model, client):
        client.sendall(sent)
        threading.Timer(0.3, model.hold.set).start()
        assert BUSY not in client.recv(4096)  # which would come in one piece


def test_a_body_in_pieces_goes_the_usual_way(tmp_path):
    with busy(tmp_path) as (server, model, client):
        whole = request()
        client.sendall(whole[:-10])
        until(lambda: len(server.server.server_state.tasks) == 3)
        client.sendall(whole[-10:])
        model.hold.set()
        assert answer(client)[0] == 200


def test_connections_that_are_too_many_are_refused_and_the_others_are_not(tmp_path):
    with contextlib.ExitStack() as stack, serving(tmp_path) as server:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            for _ in range(65)
        ]
        until(lambda: len(server.server.server_state.connections) == 65)
        clients[-1].sendall(request())
        assert answer(clients[-1]) == (503, b'{"error": "no more connections are taken."}')
        assert clients[-1].recv(10) == b""
        clients[0].sendall(request())
        assert answer(clients[0])[0] == 200


class Slow(Double):
    """A hundred requests a second, at the most."""

    def __call__(self, inputs):
        time.sleep(0.01)
        return super().__call__(inputs)


def test_at_four_times_the_capacity_there_are_answers_and_refusals(tmp_path):
    loads, policy = {"double": lambda folder: Slow()}, Policy(largest=1)
    with serving(tmp_path, loads, policy, requests=8) as server:
        closed = asyncio.run(serve_load.in_turn(server.port, request(), 4, 0.5))
        assert closed.count(200) == len(closed.answers) > 10
        assert 0 < closed.percentile(50) <= closed.percentile(99)
        opened = asyncio.run(serve_load.at_rate(server.port, request(), 400.0, 1.0))
        assert len(opened.answers) == 400
        assert opened.count(200) > 20 and opened.count(503) > 100
        assert opened.count(200) + opened.count(503) == 400
        assert opened.percentile(99) < 1.0 and 0 < opened.cpus < 2


def test_a_load_without_a_server_is_all_failures():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    load = asyncio.run(serve_load.at_rate(port, request(), 100.0, 0.1))
    assert load.count(0) == len(load.answers) == 10
    assert load.rate() == 0 and np.isnan(load.percentile(50))


def test_who_is_never_answered_is_counted(monkeypatch):
    monkeypatch.setattr(serve_load, "_GRACE", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:  # which takes, and waits
        load = asyncio.run(serve_load.at_rate(listener.getsockname()[1], request(), 100.0, 0.2))
    assert load.count(0) == len(load.answers) == 20
