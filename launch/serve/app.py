"""The server as an ASGI application: files of routes behind the gate."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from launch.serve import refusal
from launch.serve.admin import Admin
from launch.serve.bodies import Reader
from launch.serve.gate import Gate
from launch.serve.keys import Keys
from launch.serve.kserve import KServe
from launch.serve.logs import Audit
from launch.serve.metrics import Metrics
from launch.serve.openai.routes import OpenAI
from launch.serve.refusal import Refused
from launch.serve.repository import Repository


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What one request, and all of them, may take.

    Attributes:
      body: bytes of one body, decompressed.
      memory: bytes of all bodies at a time.
      body_seconds: until a body has come.
      seconds: until a request is answered.
      elements: of all inputs of one request.
    """

    body: int = 16 * 2**20
    memory: int = 512 * 2**20
    body_seconds: float = 15.0
    seconds: float = 60.0
    elements: int = 4 * 2**20


Declare = Callable[[Repository, Reader, Metrics], Sequence[BaseRoute]]
"""What another file of routes gives: its routes, each with what it `needs`."""


def application(
    repository: Repository,
    keys: Keys | None,
    metrics: Metrics,
    audit: Audit,
    bounds: Bounds,
    more: Sequence[Declare] = (),
) -> Gate:
    """Returns the application: KServe's routes, OpenAI's, those of the admins, and `more`.

    Args:
      repository: the models, which are compiled once the application starts.
      keys: who may do what; None lets anyone in.
      metrics: of the server, the same as the repository's.
      audit: where each request is noted.
      bounds: limits.
      more: further files of routes.

    Raises:
      LaunchError: a route does not say what it needs.
    """
    reader = Reader(bounds.body, bounds.memory, bounds.body_seconds)
    routes = [
        *KServe(repository, reader, bounds.elements).routes(),
        *Admin(repository, reader, metrics).routes(),
        *OpenAI(repository, reader).routes(),
        *(route for declare in more for route in declare(repository, reader, metrics)),
    ]
    app = Starlette(routes=routes, exception_handlers=_HANDLERS, lifespan=_lifespan(repository))
    app.router.redirect_slashes = False  # a redirect would be to a path that nobody asked for
    gate = Gate(app, app.routes, keys, metrics, audit, bounds.seconds)
    app.state.gate = gate
    return gate


def _lifespan(repository: Repository) -> Callable:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Beside the server, which says meanwhile that it lives and is not ready.
        compiling = asyncio.create_task(repository.start())
        yield
        compiling.cancel()
        await repository.close()

    return lifespan


async def _refused(request: Request, error: Exception) -> Response:
    request.state.kind = error.kind
    return refusal.response(error, request.state.told)


async def _http(request: Request, error: Exception) -> Response:
    request.state.kind = "not_found" if error.status_code == 404 else "malformed"
    words = {404: "there is no such path.", 405: "the path has no such method."}
    line = words.get(error.status_code, str(error.detail))
    refused = Refused(error.status_code, request.state.kind, line)
    response = refusal.response(refused, request.state.told)
    response.headers.update(error.headers or {})
    return response


async def _gone(request: Request, error: Exception) -> Response:
    request.state.kind = "gone"
    return Response(status_code=499)  # nobody hears it; nginx's word for the log


async def _fault(request: Request, error: Exception) -> Response:
    request.state.kind = "bug"
    line = f"a fault of the server; its log has it under {request.state.request_id}."
    return refusal.response(Refused(500, "bug", line), request.state.told)


_HANDLERS: Mapping = {
    Refused: _refused,
    HTTPException: _http,
    ClientDisconnect: _gone,
    Exception: _fault,
}
