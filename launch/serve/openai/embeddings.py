"""Vectors of texts, from exported models that give one for each."""

import asyncio
import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from launch.serve.bodies import Reader, json_object, until_gone
from launch.serve.models import EMBEDDING, Exported
from launch.serve.openai.asked import are_ids
from launch.serve.openai.errors import Wrong
from launch.serve.openai.fields import Fields
from launch.serve.repository import Repository, Served, Version
from lsm.errors import LsmError, nearest, shortened

_MOST_TEXTS = 2048


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """The handler of /v1/embeddings.

    Attributes:
      repository: the models.
      reader: of bodies.
    """

    repository: Repository
    reader: Reader

    async def embed(self, request: Request) -> Response:
        """Returns a vector for each text, as numbers or as base64 of float32."""
        async with self.reader.body(request) as body:
            fields = Fields(json_object(body))
            served = self._served(fields)
            texts, encoding = _texts(fields), fields.text("encoding_format", "float")
            if encoding not in ("float", "base64"):
                raise fields.wrong("encoding_format", encoding, "float or base64 is needed")
            with served.using(None) as version:
                size = version.servable.signature.outputs[EMBEDDING].shape[-1]
                fields.refuse({"dimensions": (size,)})
                fields.done()
                found, tokens = await self._found(request, version, texts)
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(row, encoding)}
            for index, row in enumerate(found[EMBEDDING].astype(np.float32))
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        told = {"object": "list", "data": data, "model": served.name, "usage": usage}
        return JSONResponse(told)

    async def _found(
        self, request: Request, version: Version, texts: Sequence
    ) -> tuple[Mapping[str, np.ndarray], int]:
        """Returns the outputs for texts, or their ids, and how many tokens those are."""
        read = version.servable.texts if isinstance(texts[0], str) else version.servable.ids
        try:
            columns, tokens = await asyncio.to_thread(read, texts)
        except LsmError as error:
            raise Wrong("input", f"input: {error}") from error
        work = version.batcher.infer(columns, request.state.deadline)
        return await until_gone(request, work), tokens

    def _served(self, fields: Fields) -> Served:
        name = fields.text("model")
        if name is None:
            raise Wrong("model", "model: a name is needed.")
        served = self.repository.models.get(name)
        if served is None or not any(embeds(v) for v in served.versions.values()):
            if served is None and name not in self.repository.writers:
                raise missing(name, self.repository)
            raise Wrong("model", f"model: {name} gives no embeddings of texts.")
        return served


def embeds(version: Version | None) -> bool:
    """Whether a version gives embeddings of texts."""
    return (
        version is not None and isinstance(version.servable, Exported) and version.servable.embeds
    )


def missing(name: str, repository: Repository) -> Wrong:
    """Returns the refusal of a model that is not there."""
    known = [*repository.writers, *repository.models]
    line = f"The model `{shortened(name)}` does not exist.{nearest(name[:100], known)}"
    return Wrong("model", line, "model_not_found", status=404)


def _texts(fields: Fields) -> list[str] | list[list[int]]:
    """Returns the texts, or each as ids of its tokens."""
    given: Any = fields.take("input")
    texts = [given] if isinstance(given, str) or are_ids(given) else given
    several = isinstance(texts, list) and bool(texts)
    if not several or not (all(isinstance(x, str) for x in texts) or all(map(are_ids, texts))):
        needed = "a text, ids of its tokens, or a list of either is needed"
        raise fields.wrong("input", given, needed)
    if len(texts) > _MOST_TEXTS:
        raise Wrong("input", f"input: {len(texts)} texts given; at most {_MOST_TEXTS}.")
    if not all(texts):
        raise Wrong("input", "input: an empty text has no embedding.")
    return texts


def _encoded(row_D: np.ndarray, encoding: str) -> str | list[float]:
    if encoding == "float":
        return row_D.tolist()
    return base64.b64encode(row_D.astype("<f4").tobytes()).decode()
