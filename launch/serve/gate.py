"""Who may do what: one ASGI middleware in front of everything, which denies by default.

A route says which scope it needs where it is declared: `needs(Route(...), Scope.INFER)`. The gate
finds the route as Starlette will, and lets nobody through without a key of that scope; a path that
is no route needs a key too, before it is told that it is none. Nothing is decided by the beginning
of a path.
"""

import asyncio
import functools
import ipaddress
import re
import time
import urllib.parse
import uuid
from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Asgi

from launch.command import LaunchError
from launch.serve import refusal, traces
from launch.serve.keys import ANYONE, Key, Keys, Scope
from launch.serve.limits import Limits
from launch.serve.logs import Audit, log
from launch.serve.metrics import Metrics
from launch.serve.refusal import Refused

OPEN = "open"
"""What a route needs that anyone may call. Only those of `_OPEN` may say so: probes have no key,
and the page on which one is typed has none yet."""

_OPEN = ("/v2/health/live", "/v2/health/ready", "/demo")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_HEADERS = 32 * 1024  # bytes of names and values
_GRACE = 5.0  # seconds to tell of a deadline that has passed


def needs(route: BaseRoute, need: Scope | str, told: refusal.Told = refusal.plain) -> BaseRoute:
    """Returns `route`, or a mount of many, which from now on needs `need`, a scope or OPEN.

    Whatever is refused there is said as `told` does.
    """
    route.need, route.told = need, told
    return route


def checked(routes: Sequence[BaseRoute]) -> Sequence[BaseRoute]:
    """Returns `routes`, each of which says what it needs.

    Raises:
      LaunchError: one does not, or is open without being a probe.
    """
    for route in routes:
        need, path = getattr(route, "need", None), getattr(route, "path", repr(route))
        if need is None:
            raise LaunchError(f"route {path}: says no scope that it needs; see launch.serve.gate.")
        if need == OPEN and path not in _OPEN:
            raise LaunchError(f"route {path}: is open; only {', '.join(_OPEN)} may be.")
    return routes


class Gate:
    """The middleware. It also names requests, counts them, writes the audit log, and drains.

    Attributes:
      app: what it stands in front of.
      routes: its routes.
      draining: whether new requests are refused, as the server is about to end.
      in_flight: requests under way.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Sequence[BaseRoute],
        keys: Keys | None,
        metrics: Metrics,
        audit: Audit,
        seconds: float,
    ):
        """Lets anyone in where `keys` is None; `seconds` is what a request may take."""
        self.app, self.routes = app, checked(routes)
        self.draining, self.in_flight = False, 0
        self._keys, self._limits = keys, Limits()
        self._metrics, self._audit, self._seconds = metrics, audit, seconds

    async def __call__(self, scope: Asgi, receive: Receive, send: Send) -> None:
        """Passes on what is allowed, and refuses everything else."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] not in ("http", "websocket"):
            return
        exchange = _Exchange(scope, receive, send)
        scope.setdefault("state", {}).update(
            request_id=exchange.id,
            deadline=time.monotonic() + self._seconds,
            kind=None,
            told=refusal.plain,
        )
        self.in_flight += 1
        self._metrics.in_flight.inc()
        try:
            need = self._admit(exchange)
            # An admin's load compiles for as long as that takes.
            async with asyncio.timeout(None if need is Scope.ADMIN else self._seconds + _GRACE):
                await self.app(scope, exchange.receive, exchange.send)
        except Refused as refused:
            scope["state"]["kind"] = refused.kind
            await exchange.refuse(refused)
        except TimeoutError:
            scope["state"]["kind"] = "slow"
            await exchange.refuse(Refused(503, "slow", "the answer could not be sent in time."))
        except Exception:
            log.exception("request %s failed", exchange.id)
            scope["state"]["kind"] = "bug"
            line = f"a fault of the server; its log has it under {exchange.id}."
            await exchange.refuse(Refused(500, "bug", line))
        finally:
            self.in_flight -= 1
            self._tell(exchange)

    def shed(self) -> None:
        """Counts a request that the server has refused before it came here: too many are under way.

        The audit log has no line of it, as nobody was let in and nothing was read.
        """
        self._metrics.requests.labels("none", "503").inc()
        self._metrics.errors.labels("overload").inc()

    def _admit(self, exchange: "_Exchange") -> Scope | str | None:
        """Returns what its route needs; raises Refused where the request may not go on."""
        scope = exchange.scope
        route = _route(self.routes, scope)
        exchange.route = getattr(route, "path", "mount") if route else "none"
        scope["state"]["told"] = getattr(route, "told", refusal.plain)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _HEADERS:
            raise Refused(431, "too_large", f"headers of more than {_HEADERS} bytes.")
        need = getattr(route, "need", None) if route else None
        if need == OPEN:
            return need
        key = exchange.key = self._key(scope)
        if route and need not in key.scopes:
            raise Refused(403, "forbidden", f"this key lacks the scope {need or 'of this route'}.")
        if self.draining:
            raise Refused(503, "draining", "the server is about to end.", retry_after=5)
        self._limits.take(key)
        return need

    def _key(self, scope: Asgi) -> Key:
        if self._keys is None:
            _check_is_local(scope)
            return ANYONE
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        word, _, text = given[0].decode("latin-1").partition(" ") if given else ("", "", "")
        key = self._keys.find(text.strip())
        if key is None or len(given) != 1 or word.lower() != "bearer":
            line = "a key is needed, and none or a wrong one given: Authorization: Bearer KEY."
            raise Refused(401, "unauthorised", line)
        return key

    def _tell(self, exchange: "_Exchange") -> None:
        seconds, m = time.monotonic() - exchange.start, self._metrics
        kind = exchange.scope["state"]["kind"]
        m.in_flight.dec()
        m.requests.labels(exchange.route, str(exchange.status)).inc()
        m.seconds.labels(exchange.route).observe(seconds)
        if kind:
            m.errors.labels(kind).inc()
        if not exchange.status:  # nobody heard an answer
            exchange.note()
        self._audit.write(
            request=exchange.id,
            key=exchange.key.id if exchange.key else None,
            client=(exchange.scope.get("client") or [None])[0],
            method=exchange.method,
            route=exchange.route,
            path=exchange.scope["path"],
            status=exchange.status,
            kind=kind,
            bytes_in=exchange.bytes_in,
            bytes_out=exchange.bytes_out,
            ms=round(seconds * 1000, 3),
        )


def _route(routes: Sequence[BaseRoute], scope: Asgi) -> BaseRoute | None:
    """Returns the route that Starlette will take: the first that matches whole, else in part."""
    partial = None
    for route in routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return route
        if match is Match.PARTIAL and partial is None:
            partial = route
    return partial


def _check_is_local(scope: Asgi) -> None:
    """Refuses pages of other sites in a browser on this machine, where no key keeps them out."""
    given = {name: x for name, x in scope["headers"] if name in (b"host", b"origin")}
    host, origin = (given.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
    if not _is_here(host):
        raise Refused(403, "forbidden", "without keys, only this machine's own name is answered.")
    if b"origin" in given and origin != f"{scope['scheme']}://{host}":
        raise Refused(403, "forbidden", "without keys, pages of other sites are not answered.")


@functools.lru_cache(maxsize=64)
def _is_here(host: str) -> bool:
    """Whether a Host header names this machine alone."""
    try:
        return is_loopback(urllib.parse.urlsplit(f"//{host}").hostname or "")
    except ValueError:  # half an IPv6 address
        return False


def is_loopback(host: str) -> bool:
    """Whether `host` is a name or an address that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Exchange:
    """One request and its answer, as they pass the gate."""

    def __init__(self, scope: Asgi, receive: Receive, send: Send):
        self.scope, self._receive, self._send = scope, receive, send
        self.start = time.monotonic()
        self.id, self.method = _request_id(scope), scope.get("method", "WEBSOCKET")
        self.key: Key | None = None
        self.route, self.status, self.done = "none", 0, False
        self.bytes_in = self.bytes_out = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.bytes_in += len(message.get("body") or b"")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.note()  # its span ends with the last byte of the answer
            named = (b"x-request-id", self.id.encode())
            message = message | {"headers": [*message.get("headers", ()), named]}
        elif message["type"].startswith("websocket."):
            self.status = self.status or (403 if message["type"] == "websocket.close" else 101)
        self.bytes_out += len(message.get("body") or b"")
        self.done = message["type"] == "http.response.body" and not message.get("more_body")
        await self._send(message)

    def note(self) -> None:
        """Tells the request's span what it is of; no name of it is a caller's choice."""
        key, kind = self.key.id if self.key else None, self.scope["state"]["kind"]
        method = self.method if self.method in _METHODS else "HTTP"
        traces.note(f"{method} {self.route}", request=self.id, key=key, kind=kind)

    async def refuse(self, refused: Refused) -> None:
        if self.done:
            return
        if self.status:  # an answer has begun: there is no other way than to break it off
            raise ConnectionAbortedError(str(refused))
        if self.scope["type"] == "websocket":
            await self.send({"type": "websocket.close", "code": 1008, "reason": str(refused)})
        else:
            response = refusal.response(refused, self.scope["state"]["told"])
            await response(self.scope, self.receive, self.send)


def _request_id(scope: Asgi) -> str:
    """Returns the caller's X-Request-Id where it is one, else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    if re.fullmatch(rb"[A-Za-z0-9._-]{1,64}", given):
        return given.decode()
    return uuid.uuid4().hex
