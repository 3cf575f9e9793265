"""Nobody passes without a key of the right scope; limits, the audit log, no way around."""

import asyncio
import json
import zlib

import pytest
from serving import SECRETS, serving, until
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute

from launch.command import LaunchError
from launch.serve import keys
from launch.serve.app import Bounds
from launch.serve.gate import OPEN, Gate, _check_is_local, checked, is_loopback, needs
from launch.serve.keys import Scope
from launch.serve.limits import Limits
from launch.serve.logs import Audit
from launch.serve.metrics import Metrics
from launch.serve.refusal import Refused

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE")
HEALTH = ("/v2/health/live", "/v2/health/ready")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("gate")) as server:
        yield server


def path_of(route):
    return route.path.replace("{model}", "double").replace("{version}", "1")


def test_every_route_is_shut_to_every_method_without_its_key(served):
    routes = served.gate.app.routes
    assert len(routes) >= 14
    for route in routes:
        for method in METHODS:
            seen = {
                key: served.request(method, path_of(route), key=key)[0]
                for key in (None, "wrong", *Scope)
            }
            if route.path in HEALTH:
                assert {*seen.values()} <= {200, 405}
                assert seen[None] == (200 if method in ("GET", "HEAD") else 405)
                continue
            assert seen.pop(None) == 401
            assert seen.pop("wrong") == 401
            allowed = seen.pop(route.need)
            unknown = "versions" in route.path or route.path == "/v1/models/{model}"
            assert allowed not in (401, 403, 0 if unknown else 404)
            assert {*seen.values()} == {403}, (route.path, method)
    # The admin's key has unloaded the model, too.
    assert served.infer([[1, 2, 3]])[0] == 503
    assert served.request("POST", "/v2/repository/models/double/load", key="admin")[0] == 200
    assert served.infer([[1, 2, 3]])[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nope",
        "/v2/",
        "/v2/health",
        "/v2/health/live/",
        "//v2",
        "/v2/health/live/../../models/double",
        "/V2",
        "/v2/models/double/infer/x",
        "/metrics/",
        "/%2e%2e/metrics",
        "*",
    ],
)
def test_a_path_that_is_none_is_not_told_to_strangers(served, path):
    assert served.request("GET", path, key=None)[0] == 401
    assert served.request("GET", path, key="infer")[0] == 404


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic {}",
        "Bearer {}x",
        "Bearer x{}",
        "Bearer \xff",
        "{}",
        "Bearer {0} {0}",
        "Bearer {},",
    ],
)
def test_what_is_no_key_lets_nobody_in(served, header):
    given = {"Authorization": header.format(SECRETS["infer"][0])}
    status, answered, body = served.request("GET", "/v2", headers=given, key=None)
    assert status == 401
    assert answered["WWW-Authenticate"] == "Bearer"
    assert list(json.loads(body)) == ["error"]


def asgi(app, scope):
    """Returns what an application sends for a scope, with no server between."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    base = {
        "headers": [],
        "path": "/",
        "method": "GET",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
    }
    asyncio.run(app(base | scope, receive, send))
    return sent


def gated(routes, tmp_path, with_keys=True):
    file = tmp_path / "keys.json"
    keys.write(file, [entry for _, entry in SECRETS.values()])
    app = Starlette(routes=routes)
    known = keys.Keys(file) if with_keys else None
    return Gate(app, app.routes, known, Metrics(), Audit(tmp_path / "audit"), 5.0)


async def hello(request):
    return PlainTextResponse("secret")


async def socket(websocket):
    await websocket.accept()
    await websocket.close()


def test_mounts_websockets_and_late_routes_are_behind_it_too(tmp_path):
    inner = Starlette(routes=[Route("/page", hello), WebSocketRoute("/ws", socket)])
    routes = [
        needs(Mount("/inner", inner), Scope.INFER),
        needs(WebSocketRoute("/ws", socket), Scope.INFER),
    ]
    gate = gated(routes, tmp_path)
    bearer = [(b"authorization", f"Bearer {SECRETS['infer'][0]}".encode())]
    other = [(b"authorization", f"Bearer {SECRETS['metrics'][0]}".encode())]
    page = {"type": "http", "path": "/inner/page"}
    assert asgi(gate, page)[0]["status"] == 401
    assert asgi(gate, page | {"headers": other})[0]["status"] == 403
    assert asgi(gate, page | {"headers": bearer})[0]["status"] == 200
    for path in ("/ws", "/inner/ws", "/none"):
        ws = {"type": "websocket", "path": path, "subprotocols": []}
        assert [m["type"] for m in asgi(gate, ws)] == ["websocket.close"]
        assert [m["type"] for m in asgi(gate, ws | {"headers": other})] == ["websocket.close"]
    assert asgi(gate, {"type": "other"}) == []
    gate.routes.append(Route("/late", hello))  # without a word on what it needs
    assert asgi(gate, {"type": "http", "path": "/late"})[0]["status"] == 401
    assert asgi(gate, {"type": "http", "path": "/late", "headers": bearer})[0]["status"] == 403


def test_a_route_has_to_say_what_it_needs():
    with pytest.raises(LaunchError, match="route /new: says no scope"):
        checked([Route("/new", hello)])
    with pytest.raises(LaunchError, match="route /v2: is open; only /v2/health/live"):
        checked([needs(Route("/v2", hello), OPEN)])


def test_without_keys_other_sites_and_names_are_refused(tmp_path):
    gate = gated([needs(Route("/page", hello), Scope.INFER)], tmp_path, with_keys=False)
    for host, origin, status in (
        (b"127.0.0.1:8000", None, 200),
        (b"localhost", b"http://localhost", 200),
        (b"[::1]:80", None, 200),
        (b"evil.example", None, 403),  # a name that a site made point here
        (b"127.0.0.1.evil.example", None, 403),
        (b"localhost", b"http://evil.example", 403),
        (b"localhost", b"null", 403),
        (b"", None, 403),
    ):
        headers = [(b"host", host)] + ([(b"origin", origin)] if origin else [])
        sent = asgi(gate, {"type": "http", "path": "/page", "headers": headers})
        assert sent[0]["status"] == status, (host, origin)
    assert is_loopback("127.8.9.1") and not is_loopback("0.0.0.0")


def test_rate_and_quota_by_the_clock():
    now = [86_400.0 * 100]
    limits = Limits(lambda: now[0])
    _, key = keys.new_key("k", ["infer"], rate=2.0, daily=5)
    _, other = keys.new_key("o", ["infer"], rate=None, daily=None)
    for _ in range(2):
        limits.take(key)
    with pytest.raises(Refused, match="2 requests a second") as refused:
        limits.take(key)
    assert refused.value.status == 429
    assert refused.value.retry_after == pytest.approx(0.5)
    now[0] += 0.5
    limits.take(key)
    now[0] += 10
    for _ in range(2):  # two tokens are the most that are saved up
        limits.take(key)
    now[0] += 10
    with pytest.raises(Refused, match="requests of the day") as refused:
        limits.take(key)
    assert refused.value.retry_after == pytest.approx(86_400 - 20.5)
    now[0] += 86_400
    limits.take(key)
    for _ in range(100):
        limits.take(other)


def test_keys_are_revoked_and_limited_while_the_server_runs(tmp_path):
    with serving(tmp_path) as server:
        file = tmp_path / "keys.json"
        assert server.request("GET", "/v2")[0] == 200
        secret, entry = keys.new_key("new", ["infer"], rate=0.001, daily=None)
        keys.write(file, [entry])
        assert server.request("GET", "/v2")[0] == 401
        bearer = {"Authorization": f"Bearer {secret}"}
        assert server.request("GET", "/v2", headers=bearer, key=None)[0] == 200
        status, answered, _ = server.request("GET", "/v2", headers=bearer, key=None)
        assert status == 429
        assert 900 < int(answered["Retry-After"]) <= 1001


def test_the_audit_log_cannot_be_written_into(tmp_path):
    with serving(tmp_path) as server:
        hostile = '/v2/models/x%0a{"key":"admin"}%1b[31m' + "y" * 500
        server.request(
            "GET", hostile, headers={"X-Request-Id": "a" * 65, "User-Agent": "x\tsecret"}
        )
        server.infer([[1, 2, 3]], headers={"X-Request-Id": "mine-1.a_b"})
        server.request("GET", "/v2", key=None)
        until(lambda: (tmp_path / "audit.jsonl").read_text().count("\n") >= 3)
    text = (tmp_path / "audit.jsonl").read_text()
    assert text.isascii() and "\x1b" not in text
    first, second, third = map(json.loads, text.splitlines())
    assert len(first["path"]) <= 200
    assert len(first["request"]) == 32
    assert second["request"] == "mine-1.a_b"
    assert second["route"] == "/v2/models/{model}/infer"
    assert second["key"] == SECRETS["infer"][1].id
    assert (second["status"], second["kind"]) == (200, None)
    assert second["bytes_in"] > 50 and second["bytes_out"] > 50 and second["ms"] > 0
    assert (third["key"], third["status"], third["kind"]) == (None, 401, "unauthorised")
    assert all(secret not in text for secret, _ in SECRETS.values())
    assert "data" not in text


def test_headers_and_bodies_have_limits(tmp_path):
    with serving(tmp_path, bounds=Bounds(body=1000, elements=30)) as server:
        assert server.request("GET", "/v2", headers={"X-Long": "x" * 40_000})[0] == 431
        path = "/v2/models/double/infer"
        assert server.request("POST", path, b"x" * 1001)[0] == 413
        chunks = iter([b"x" * 600] * 2)  # in chunks, with no length told
        assert server.request("POST", path, chunks)[0] == 413
        assert server.infer([[1, 2, 3]] * 11)[0] == 413
        assert server.infer([[1, 2, 3]] * 10)[0] == 200
        bomb = zlib.compress(b" " * 10**5)
        assert len(bomb) < 1000
        status, _, body = server.request("POST", path, bomb, {"Content-Encoding": "deflate"})
        assert (status, b"larger than the 1,000 bytes" in body) == (413, True)
        assert server.request("POST", path, b"{}", {"Content-Encoding": "br"})[0] == 415
        assert server.request("POST", path, b"{}", {"Content-Encoding": "gzip"})[0] == 400
        assert server.infer([[1, 2, 3]])[0] == 200


HERE = [b"localhost", b"localhost:8000", b"127.0.0.1:8000", b"[::1]:8000", b"127.9.9.9"]
ELSEWHERE = [b"", b"evil.example", b"localhost.evil.example", b"10.0.0.1", b"[", b"[::1", b"\xff"]


@pytest.mark.parametrize("host", HERE + ELSEWHERE)
def test_without_keys_only_names_of_this_machine_are_answered(host):
    """A name of another site that is made to point here is none (DNS rebinding)."""
    scope = {"scheme": "http", "headers": [(b"host", host)]}
    if host in HERE:
        _check_is_local(scope)
    else:
        with pytest.raises(Refused, match="only this machine's own name is answered"):
            _check_is_local(scope)


@pytest.mark.parametrize("origin", ["http://localhost:8000", "http://localhost", "null", ""])
def test_without_keys_only_pages_of_the_server_s_own_are_answered(origin):
    headers = [(b"host", b"localhost:8000"), (b"origin", origin.encode())]
    scope = {"scheme": "http", "headers": headers}
    if origin == "http://localhost:8000":
        _check_is_local(scope)
    else:
        with pytest.raises(Refused, match="pages of other sites are not answered"):
            _check_is_local(scope)
