"""The KServe v2 protocol over HTTP, as JSON and with Triton's binary tensor data."""

import dataclasses
import time
from typing import Any, NamedTuple

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from launch.serve import tensors
from launch.serve.bodies import Reader, json_object, until_gone
from launch.serve.gate import OPEN, needs
from launch.serve.keys import Scope
from launch.serve.refusal import malformed
from launch.serve.repository import Repository, Version
from lsm.errors import shortened
from lsm.run.result import versions

_LENGTH = "Inference-Header-Content-Length"
_STATEFUL = ("sequence_id", "sequence_start", "sequence_end")


@dataclasses.dataclass(frozen=True)
class KServe:
    """The handlers of the protocol.

    Attributes:
      repository: the models.
      reader: of bodies.
      elements: how many the inputs of one request may have.
    """

    repository: Repository
    reader: Reader
    elements: int

    def routes(self) -> list[BaseRoute]:
        """Returns the routes of the protocol, with the scopes that they need."""
        model = "/v2/models/{model}"
        read = {
            "/v2": self.server,
            model: self.metadata,
            model + "/versions/{version}": self.metadata,
            model + "/ready": self.model_ready,
            model + "/versions/{version}/ready": self.model_ready,
        }
        write = [model + "/infer", model + "/versions/{version}/infer"]
        return [
            needs(Route("/v2/health/live", self.live), OPEN),
            needs(Route("/v2/health/ready", self.ready), OPEN),
            *(needs(Route(path, handler), Scope.INFER) for path, handler in read.items()),
            *(needs(Route(path, self.infer, methods=["POST"]), Scope.INFER) for path in write),
        ]

    async def live(self, request: Request) -> Response:
        """Says that the process answers."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Says whether every model is ready, by the status too: 200 or 503."""
        ready = self.repository.ready and not request.app.state.gate.draining
        return JSONResponse({"live": True, "ready": ready}, 200 if ready else 503)

    async def server(self, request: Request) -> Response:
        """Tells the server's name and extensions."""
        extensions = ["binary_tensor_data", "model_repository", "parameters"]
        return JSONResponse({"name": "lsm", "version": versions()["lsm"], "extensions": extensions})

    async def metadata(self, request: Request) -> Response:
        """Tells a model's versions, inputs and outputs."""
        served = self.repository.model(request.path_params["model"])
        number = request.path_params.get("version")
        version = served.version(number) if number else served.any_version or served.version(None)
        signature = version.servable.signature
        told = {
            "name": served.name,
            "versions": list(served.versions),
            "platform": "lsm_export",
            "inputs": tensors.metadata(signature.inputs),
            "outputs": tensors.metadata(signature.outputs),
        }
        labels = version.servable.labels
        return JSONResponse(told | ({"labels": list(labels)} if labels else {}))

    async def model_ready(self, request: Request) -> Response:
        """Says whether a model, or a version of it, is ready: 200 or 503."""
        served = self.repository.model(request.path_params["model"])
        number = request.path_params.get("version")
        found = [served.version(number)] if number else served.versions.values()
        ready = any(v.state == "READY" and (number or v.share) for v in found)
        return JSONResponse({"name": served.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        """Computes a model's outputs for the inputs in the body."""
        served = self.repository.model(request.path_params["model"])
        with served.using(request.path_params.get("version")) as version:
            version.batcher.admit()  # before the body is read, which costs more than all else
            return await self._infer(request, served.name, version)

    async def _infer(self, request: Request, name: str, version: Version) -> Response:
        async with self.reader.body(request) as body:
            length = request.headers.get(_LENGTH)
            inputs, asked = self._read(body, length, version, request.state.deadline)
            work = version.batcher.infer(inputs, asked.deadline)
            outputs = await until_gone(request, work)
        head = {"model_name": name, "model_version": version.number} | asked.id
        return _response(head, outputs, asked.wanted)

    def _read(
        self, body: bytes, length: str | None, version: Version, deadline: float
    ) -> tuple[dict[str, np.ndarray], "_Asked"]:
        """Returns the inputs, and what else is asked for.

        The lists that a body of JSON becomes are freed here: while requests wait, the garbage
        collector would look through all their numbers again and again.
        """
        asked, binary = _divided(body, length)
        signature = version.servable.signature
        wanted = tensors.requested(asked, list(signature.outputs))
        rest = _Asked(_id(asked), _deadline(asked, deadline), wanted)
        return tensors.decode(asked.get("inputs"), binary, signature, self.elements), rest


class _Asked(NamedTuple):
    id: dict[str, str]
    deadline: float
    wanted: dict[str, bool]


def _divided(body: bytes, length: str | None) -> tuple[dict[str, Any], memoryview]:
    """Returns the JSON of a request, and the binary data behind it."""
    if length is None:
        return json_object(body), memoryview(b"")
    if not (length.isascii() and length.isdigit() and len(length) < 12) or int(length) > len(body):
        line = f"{shortened(length)!r} given; the body has {len(body)} bytes."
        raise malformed(f"{_LENGTH}: {line}")
    return json_object(body[: int(length)]), memoryview(body)[int(length) :]


def _id(asked: dict[str, Any]) -> dict[str, str]:
    given = asked.get("id")
    if given is None:
        return {}
    if not isinstance(given, str) or len(given) > 1000:
        raise malformed("id: a text of at most 1000 characters is needed.")
    return {"id": given}


def _deadline(asked: dict[str, Any], deadline: float) -> float:
    """Returns the deadline, sooner where the request's "timeout" (microseconds) says so."""
    parameters = asked.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise malformed("parameters: an object is needed.")
    for name in _STATEFUL:
        if parameters.get(name):
            raise malformed(f"parameters.{name}: the models here keep no state between requests.")
    limit = parameters.get("timeout", 0)
    if type(limit) is not int or limit < 0:
        given = shortened(repr(limit))
        raise malformed(f"parameters.timeout: {given} given; microseconds are needed.")
    return min(deadline, time.monotonic() + limit / 1e6) if limit else deadline


def _response(head: dict[str, Any], outputs: dict, wanted: dict[str, bool]) -> Response:
    body, length = tensors.encode(head, outputs, wanted)
    if length is None:
        return Response(body, media_type="application/json")
    headers = {_LENGTH: str(length)}
    return Response(body, headers=headers, media_type="application/octet-stream")
