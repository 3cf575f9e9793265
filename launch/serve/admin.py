"""Versions loaded, unloaded and given shares of the requests, and the page of the metrics.

Index, load and unload are Triton's "Model Repository Extension"; only versions in the folders of
the command line can be loaded, and no request names a path.
"""

import dataclasses
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from launch.serve.bodies import Reader, json_object
from launch.serve.gate import needs
from launch.serve.keys import Scope
from launch.serve.metrics import Metrics
from launch.serve.refusal import malformed
from launch.serve.repository import Repository
from lsm.errors import shortened


@dataclasses.dataclass(frozen=True)
class Admin:
    """The handlers for those who run the server.

    Attributes:
      repository: the models.
      reader: of bodies.
      metrics: of the server.
    """

    repository: Repository
    reader: Reader
    metrics: Metrics

    def routes(self) -> list[BaseRoute]:
        """Returns the routes, with the scopes that they need."""
        model = "/v2/repository/models/{model}"
        posts = [
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route(model + "/load", self.load, methods=["POST"]),
            Route(model + "/unload", self.unload, methods=["POST"]),
            Route(model + "/share", self.share, methods=["POST"]),
        ]
        page = needs(Route("/metrics", self.page), Scope.METRICS)
        return [page, *(needs(route, Scope.ADMIN) for route in posts)]

    async def page(self, request: Request) -> Response:
        """Returns the metrics as Prometheus reads them."""
        text, content_type = self.metrics.page()
        return Response(text, headers={"Content-Type": content_type})

    async def index(self, request: Request) -> Response:
        """Lists every version that is loaded: its state, why, and its share of the requests."""
        asked = await self._asked(request)
        return JSONResponse(
            [
                {
                    "name": served.name,
                    "version": version.number,
                    "state": version.state,
                    "reason": version.reason,
                    "share": version.share,
                }
                for served in self.repository.models.values()
                for version in served.versions.values()
                if not asked.get("ready") or version.state == "READY"
            ]
        )

    async def load(self, request: Request) -> Response:
        """Loads the version in parameters.version, by default the newest, beside the others."""
        number = _version(await self._asked(request))
        version = await self.repository.load(request.path_params["model"], number)
        return JSONResponse({"version": version.number, "share": version.share})

    async def unload(self, request: Request) -> Response:
        """Unloads the version in parameters.version, by default all of the model."""
        number = _version(await self._asked(request))
        await self.repository.unload(request.path_params["model"], number)
        return JSONResponse({})

    async def share(self, request: Request) -> Response:
        """Divides the requests that name no version: {"shares": {"1": 0.9, "2": 0.1}}."""
        shares = (await self._asked(request)).get("shares")
        if not isinstance(shares, dict):
            raise malformed("shares: an object is needed, such as {'1': 0.9, '2': 0.1}.")
        served = self.repository.model(request.path_params["model"])
        served.share(shares)
        return JSONResponse({"shares": {v.number: v.share for v in served.versions.values()}})

    async def _asked(self, request: Request) -> dict[str, Any]:
        async with self.reader.body(request) as body:
            return json_object(body) if body.strip() else {}


def _version(asked: dict[str, Any]) -> str | None:
    parameters = asked.get("parameters", {})
    number = parameters.get("version") if isinstance(parameters, dict) else parameters
    if number is not None and not isinstance(number, str):
        raise malformed(f"parameters.version: {shortened(repr(number))} given; a text is needed.")
    return number
