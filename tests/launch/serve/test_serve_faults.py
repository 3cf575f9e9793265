"""Broken connections, slow clients, the end of a server, crashes, and memory."""

import asyncio
import contextlib
import gc
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time
import types

import numpy as np
import pytest
from serving import SECRETS, Double, Signature, Tensor, serving, until

from launch.serve import __main__ as supervisor
from launch.serve import command
from launch.serve.app import Bounds
from launch.serve.connections import _HeadWithBody

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("faults"), patience=0.4) as server:
        yield server


def raw(server, sent, seconds=5):
    """Returns all that a server answers to these bytes until it closes, or b""."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as client:
        client.sendall(sent)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := client.recv(65536):
                answer += piece
        return answer


def head(length, secret=None, more=""):
    secret = secret or SECRETS["infer"][0]
    return (
        f"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {secret}\r\nContent-Length: {length}\r\n{more}\r\n"
    ).encode()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01 no HTTP\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /v2/health/live\r\n\r\n",
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"CONNECT other:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT http://x/v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000,
    ],
)
def test_what_is_no_http_gets_400_or_is_cut_off(served, sent):
    answer = raw(served, sent)
    assert answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 401")
    assert served.infer([[1, 2, 3]])[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /v2 HT", b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: "])
def test_a_head_that_does_not_come_is_not_waited_for(served, sent):
    start = time.monotonic()
    raw(served, sent)
    assert time.monotonic() - start < 3


CHUNKED = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /v2 HTTP/1.1\r\nHost: x\r\n",
        CHUNKED + b"1;",  # an extension of a chunk
        CHUNKED + b"0\r\n",  # trailers
    ],
    ids=["head", "extension", "trailers"],
)
def test_heads_without_an_end_are_cut_off(tmp_path, begun):
    with (
        serving(tmp_path) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as client,
    ):
        sent = 0
        with contextlib.suppress(ConnectionError):
            client.sendall(begun)
            for number in range(10_000):
                line = b"x" * 1000
                client.sendall(line if begun.endswith(b";") else b"X%d: %s\r\n" % (number, line))
                sent += 1000
        assert sent < 10e6  # what the system's buffers took
        until(lambda: server.gate.in_flight == 0)
        assert server.infer([[1, 2, 3]])[0] == 200


def test_requests_that_come_together_are_answered_in_turn(served):
    one = b"GET /v2/health/%s HTTP/1.1\r\nHost: x\r\n%s\r\n"
    last = one % (b"live", b"Connection: close\r\n")
    answer = raw(served, one % (b"ready", b"") + one % (b"live", b"") + last)
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b'{"live":true,"ready":true}', b'{"live":true}', b'{"live":true}']


BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
).encode()


@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_who_would_speak_another_protocol_is_answered_in_this_one(tmp_path, size):
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    wish = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n\r\n"
    )
    sent = b"".join(
        with_body.replace(b"Connection: close\r\n", b"")[:-2] + wish + body
        for with_body, body in ((head(len(BODY)), BODY), (CHUNKED, chunked))
    )
    with (
        serving(tmp_path) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as client,
    ):
        for start in range(0, len(sent), size):
            client.sendall(sent[start : start + size])
        answer = b""
        while answer.count(b"outputs") < 2:
            piece = client.recv(65536)
            assert piece
            answer += piece
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_rubbish_behind_a_request_comes_neither_into_its_answer_nor_before_it(tmp_path):
    with serving(tmp_path) as server:
        for sent in (head(len(BODY)) + BODY, KEPT):
            answer = raw(server, sent + b"rubbish\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1") == 1
        until(lambda: server.gate.in_flight == 0)


@pytest.mark.parametrize("pause", [0, 0.2])
@pytest.mark.parametrize(
    "trailer", [f"Authorization: Bearer {SECRETS['infer'][0]}", "X: y"], ids=["key", "other"]
)  # ids, as keys differ from process to process
def test_trailers_are_no_headers(served, trailer, pause):
    start = CHUNKED
    if trailer.startswith("Authorization"):
        start = re.sub(rb"Authorization: [^\r]*\r\n", b"", CHUNKED)
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as client:
        client.sendall(start + b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY))
        time.sleep(pause)
        client.sendall(trailer.encode() + b"\r\nContent-Encoding: gzip\r\n\r\n")
        status = client.recv(100)[9:12]
    assert status == (b"401" if trailer.startswith("Authorization") else b"200")


KEPT = head(len(BODY)).replace(b"Connection: close\r\n", b"") + BODY
"""A request after which the connection goes on."""


@contextlib.contextmanager
def holding(tmp_path):
    """A server whose model, once it has been compiled, answers nobody until `hold` is set."""
    model = Double()
    with serving(tmp_path, {"double": lambda folder: model}) as server:
        until(lambda: model.batches)
        model.hold.clear()
        yield server, model


def test_no_client_has_more_than_so_many_requests_waiting(tmp_path):
    with holding(tmp_path) as (server, model):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.settimeout(1)
            with contextlib.suppress(TimeoutError, ConnectionError):
                for _ in range(100):
                    client.sendall(100 * KEPT)
            connections = server.server.server_state.connections
            until(lambda: any(len(one.pipeline) >= 100 for one in connections))
            time.sleep(0.2)  # all that was sent is there
            assert [len(one.pipeline) for one in connections] == [100]
            model.hold.set()
        until(lambda: server.gate.in_flight == 0)


def test_a_client_that_goes_frees_the_first_of_its_requests(tmp_path, caplog):
    with holding(tmp_path) as (server, model):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(2 * KEPT)
            until(lambda: server.gate.in_flight == 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: server.gate.in_flight == 0)
        model.hold.set()
    assert "Traceback" not in caplog.text and not [r for r in caplog.records if r.exc_info]


def test_a_second_head_on_a_connection_is_not_waited_for_either(served):
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=3) as client:
        client.sendall(request)
        answer = client.recv(4096)
        while not answer.endswith(b'{"live":true}'):
            answer += client.recv(4096)
        client.sendall(request[:20])
        assert client.recv(4096) == b""


def test_a_connection_that_was_reset_is_not_kept_and_is_no_garbage_in_cycles(tmp_path):
    """Hundreds a second, each kept until its keep-alive was over, were some 30 MiB."""
    get = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
    ways = (get + b"Connection: close\r\n\r\n", get + b"\r\n", get[:20], head(100))
    with serving(tmp_path, patience=60) as server:
        kind = server.server.config.http_protocol_class
        gc.collect()
        gc.disable()
        try:
            for sent in ways:
                with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
                    client.sendall(sent)
                    if sent.startswith(get):
                        assert client.recv(100).startswith(b"HTTP/1.1 200")
                    # What it has not read makes the system reset the connection.
            until(lambda: not server.server.server_state.connections)
            until(lambda: server.gate.in_flight == 0)
            until(lambda: not any(type(one) is kind for one in gc.get_objects()))
        finally:
            gc.enable()


def test_head_and_body_of_an_answer_come_together(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as client:
        for _ in range(20):
            client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(4096).endswith(b'\r\n\r\n{"live":true}')


@pytest.mark.parametrize("end", ["turn", "close", "gone"])
def test_a_head_without_a_body_is_sent_all_the_same(end):
    calls, gone = [], []
    transport = types.SimpleNamespace(
        write=calls.append, close=lambda: calls.append("closed"), is_closing=lambda: bool(gone)
    )

    async def answer():
        joined = _HeadWithBody(transport, asyncio.get_running_loop())
        joined.write(b"HTTP/1.1 200 OK\r\n\r\n")
        assert not calls
        if end == "close":
            joined.close()
        if end == "gone":  # the client: to write to it is an error in uvloop
            gone.append(True)
        await asyncio.sleep(0)

    asyncio.run(answer())
    sent = [b"HTTP/1.1 200 OK\r\n\r\n"] * (end != "gone")
    assert calls == sent + ["closed"] * (end == "close")


def test_the_pieces_of_a_stream_do_not_wait_for_acknowledgement(served):
    with socket.create_connection(("127.0.0.1", served.port)):
        until(lambda: served.server.server_state.connections)
        for connection in list(served.server.server_state.connections):
            own = connection.transport.get_extra_info("socket")
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_body_that_does_not_come_is_408(tmp_path):
    with serving(tmp_path, bounds=Bounds(body_seconds=0.3)) as server:
        assert raw(server, head(100) + b'{"inp').startswith(b"HTTP/1.1 408")
        until(lambda: server.gate.in_flight == 0)


def test_an_answer_that_is_not_taken_is_not_kept(tmp_path):
    class Wide(Double):
        def __init__(self):
            super().__init__()
            self.signature = Signature(
                {"x": Tensor(("b", 3), np.dtype(np.float32))},
                {"y": Tensor(("b", 1_000_000), np.dtype(np.float32))},
            )

        def __call__(self, inputs):
            return {"y": np.ones((len(inputs["x"]), 1_000_000), np.float32)}

    x = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}
    asked = {"inputs": [x], "parameters": {"binary_data_output": True}}
    body = json.dumps(asked).encode()
    with (
        serving(tmp_path, {"double": lambda folder: Wide()}, patience=0.4) as server,
        socket.create_connection(("127.0.0.1", server.port)) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(head(len(body)) + body)
        until(lambda: server.server.server_state.connections)
        until(lambda: not server.server.server_state.connections)
        until(lambda: server.gate.in_flight == 0)


def test_too_many_bodies_at_a_time_are_503(tmp_path):
    with serving(tmp_path, bounds=Bounds(memory=5000)) as server:
        held = socket.create_connection(("127.0.0.1", server.port))
        held.sendall(head(6000) + b"x" * 4990)
        until(lambda: server.gate.in_flight == 1)
        until(lambda: server.infer([[1, 2, 3]])[0] == 503)
        held.close()
        until(lambda: server.infer([[1, 2, 3]])[0] == 200)


def test_at_the_end_new_requests_are_refused_and_those_under_way_are_done(tmp_path):
    model, found = Double(), []
    with serving(tmp_path, {"double": lambda folder: model}) as server:
        model.batches.clear()
        model.hold.clear()
        running = threading.Thread(target=lambda: found.append(server.infer([[1, 2, 3]])))
        running.start()
        until(lambda: model.batches)
        server.loop.call_soon_threadsafe(server.server.stop)
        until(lambda: server.gate.draining)
        status, answered, _ = server.request("GET", "/v2")
        assert (status, answered["Retry-After"]) == (503, "6")
        assert server.request("GET", "/v2", key=None)[0] == 401
        assert server.request("GET", "/v2/health/live", key=None)[0] == 200
        assert server.request("GET", "/v2/health/ready", key=None)[0] == 503
        model.hold.set()
        running.join()
        assert found[0][0] == 200
        until(lambda: not server.loop.is_running())


def child(tmp_path, body):
    file = tmp_path / "server.py"
    file.write_text("import os, pathlib, signal, sys, time\n" + textwrap.dedent(body))
    return [sys.executable, str(file)]


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_server_that_crashes_is_started_again(tmp_path, capfd):
    body = """
        runs = pathlib.Path(sys.argv[1])
        runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
        if len(runs.read_text()) < 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        sys.exit(7)
    """
    assert supervisor.main([str(tmp_path / "runs")], child(tmp_path, body)) == 7
    assert (tmp_path / "runs").read_text() == "xxx"
    assert capfd.readouterr().err.count("killed by SIGSEGV; it is restarted") == 2
    always = child(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert supervisor.main([], always) == 128 + 9  # after five times


@pytest.mark.usefixtures("handlers")
def test_a_signal_is_passed_on_and_its_status_comes_back(tmp_path):
    body = """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(20)
    """
    ready = tmp_path / "ready"

    def end():
        until(ready.exists)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end).start()
    assert supervisor.main([str(ready)], child(tmp_path, body)) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--keys=FILE is needed"),
        (["--no_auth", "--keys=x"], "and not both"),
        (["--no_auth", "--host=0.0.0.0"], "--no_auth: only with a loopback address"),
        (["--no_auth"], "a model is needed"),
        (["--no_auth", "digits"], "'digits' given; NAME=DIR is needed"),
        (["--no_auth", "a/b=c"], "NAME=DIR is needed"),
        (["--no_auth", "a=b", "a=c"], "a is given twice"),
        (["--no_auth", "a=/nowhere", "--port=0"], "/nowhere: no such file or folder"),
        (["--no_auth", "a=.", "--port=0"], "neither signature.json nor folders"),
        (["--no_auth", "a=.", "--port=70000"], "--port: 70000 given"),
        (["--keys=/nowhere", "a=.", "--port=0"], "/nowhere: cannot be read"),
        (["--no_auth", "a=.", "--tls_cert=x"], "both are needed"),
        (["--no_auth", "a=.", "--tls_cert=/no", "--tls_key=/no"], "cannot be used"),
        (
            ["--no_auth", "a=.", "--tls_cert=~no-one/x", "--tls_key=y"],
            "--tls_cert: '~no-one/x' is no",
        ),
        (["--no_auth", "a=.", "--batch_rows=0"], "--batch_rows: 0 given"),
        (["--no_auth", "a=.", "--prt=1"], "Did you mean '--port'?"),
    ],
)
def test_slips_on_the_command_line(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(words) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and told in error


@contextlib.contextmanager
def real_process(tmp_path, *words):
    """Gives a server's process and its port, once it listens."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests/launch/serve")!r})
from serving import Double
from launch.serve import command, models
model = Double()
models.load = lambda folder: model
sys.exit(command.main(sys.argv[1:]))
"""
    (tmp_path / "1").mkdir()
    (tmp_path / "1/signature.json").touch()
    words = [f"double={tmp_path}", "--no_auth", "--port=0", *words]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        line = next(line for line in process.stderr if "listening at" in line)
        yield process, int(json.loads(line)["message"].rpartition(":")[2])
    finally:
        process.kill()


@pytest.mark.slow
def test_a_real_process_drains_and_ends_with_status_0(tmp_path):
    with real_process(tmp_path) as (process, port):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl, which makes certificates")
def test_requests_come_over_tls(tmp_path):
    key, certificate = (str(tmp_path / name) for name in ("key.pem", "cert.pem"))
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(words, check=True, capture_output=True)
    trusted = ssl.create_default_context(cafile=certificate)
    words = (f"--tls_cert={certificate}", f"--tls_key={key}")
    with real_process(tmp_path, *words) as (process, port):
        client = http.client.HTTPSConnection("localhost", port, timeout=10, context=trusted)

        def ready():
            client.request("GET", "/v2/health/ready")  # all of them on one connection
            return json.loads(client.getresponse().read())["ready"]

        until(ready)
        client.request("POST", "/v2/models/double/infer", BODY)
        answer = json.loads(client.getresponse().read())
        assert answer["outputs"][0]["data"] == [2, 4, 6]
        assert b"200" not in raw(types.SimpleNamespace(port=port), b"GET / HTTP/1.1\r\n\r\n")[:20]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.slow
def test_memory_stays_flat_for_a_minute_of_all_sorts(tmp_path):
    def resident():
        gc.collect()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def some(server, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            server.infer(np.ones((50, 3)))
            server.infer([[1, 2, 3]], key="wrong")
            server.request("POST", "/v2/models/double/infer", b"[" * 10_000)
            server.request("GET", f"/v2/models/{time.monotonic_ns()}")
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(head(10_000) + b"x")

    with serving(tmp_path) as server:
        some(server, 15)
        before = resident()
        some(server, 45)
        assert resident() - before < 10
        until(lambda: server.gate.in_flight == 0)
