"""The routes of OpenAI's protocol."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from launch.serve.bodies import Reader, json_object, until_gone
from launch.serve.gate import needs
from launch.serve.keys import Scope
from launch.serve.openai import asked
from launch.serve.openai.embeddings import Embeddings, embeds, missing
from launch.serve.openai.errors import Wrong, told
from launch.serve.openai.texts import Answer, Events, ids_of
from launch.serve.repository import Repository
from launch.serve.writers import Writer


@dataclasses.dataclass(frozen=True)
class OpenAI:
    """The handlers of the protocol.

    Attributes:
      repository: the models.
      reader: of bodies.
    """

    repository: Repository
    reader: Reader

    def routes(self) -> list[BaseRoute]:
        """Returns the routes of the protocol, with the scopes that they need."""
        embeddings = Embeddings(self.repository, self.reader)
        found = [
            Route("/v1/models", self.models),
            Route("/v1/models/{model}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/embeddings", embeddings.embed, methods=["POST"]),
        ]
        return [needs(route, Scope.INFER, told) for route in found]

    async def models(self, request: Request) -> Response:
        """Lists the models that this protocol can ask."""
        return JSONResponse({"object": "list", "data": list(self._models().values())})

    async def model(self, request: Request) -> Response:
        """Tells of one of them."""
        name, known = request.path_params["model"], self._models()
        if name not in known:
            raise missing(name, self.repository)
        return JSONResponse(known[name])

    def _models(self) -> dict[str, dict[str, Any]]:
        names = {name: writer.since for name, writer in self.repository.writers.items()}
        for name, served in self.repository.models.items():
            if embeds(version := served.any_version):
                names[name] = version.since
        return {
            name: {"id": name, "object": "model", "created": since, "owned_by": "lsm"}
            for name, since in names.items()
        }

    async def completions(self, request: Request) -> Response:
        """Goes on with prompts."""
        return await self._texts(request, asked.completion)

    async def chat(self, request: Request) -> Response:
        """Answers a conversation."""
        return await self._texts(request, asked.chat)

    async def _texts(
        self, request: Request, read: Callable[[dict[str, Any]], asked.Asked]
    ) -> Response:
        async with self.reader.body(request) as body:
            wanted = read(json_object(body))
            writer = self._writer(wanted.model)
            ids = await asyncio.to_thread(ids_of, wanted, writer)
        answer = Answer(wanted, writer, ids, request)
        if wanted.stream:
            return Events(answer)
        try:
            return JSONResponse(await until_gone(request, answer.whole()))
        finally:
            answer.texts.close()

    def _writer(self, name: str) -> Writer:
        if name in self.repository.writers:
            return self.repository.writers[name]
        if name in self.repository.models:
            line = f"model: {name} writes no texts: of those that do, the run itself is served."
            raise Wrong("model", line)
        raise missing(name, self.repository)
