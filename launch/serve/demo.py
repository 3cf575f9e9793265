"""The page on which people try what is served: they draw, drop a picture, or type a prompt.

The page itself is open, and holds nothing; what it asks for needs the key that is typed into it.
"""

import base64
import dataclasses
import hashlib
import pathlib
import re
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from launch.serve.bodies import Reader
from launch.serve.gate import OPEN, needs
from launch.serve.keys import Scope
from launch.serve.metrics import Metrics
from launch.serve.models import Servable
from launch.serve.repository import Repository
from launch.serve.writers import Writer
from lsm.errors import DataError

PAGE = pathlib.Path(__file__).with_name("demo.html").read_text()
_SHARES = "probability"


def _digest(element: str) -> str:
    """Returns the source, as a policy names it, of the one element of the page."""
    (text,) = re.findall(f"<{element}>(.*?)</{element}>", PAGE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_digest('script')}; style-src {_digest('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclasses.dataclass(frozen=True)
class Demo:
    """The handlers of the page.

    Attributes:
      repository: the models.
    """

    repository: Repository

    def routes(self) -> list[BaseRoute]:
        """Returns the routes, with the scopes that they need."""
        return [
            needs(Route("/demo", self.page), OPEN),
            needs(Route("/demo/models", self.models), Scope.INFER),
        ]

    async def page(self, request: Request) -> Response:
        """Returns the page."""
        return HTMLResponse(PAGE, headers=HEADERS)

    async def models(self, request: Request) -> Response:
        """Tells which models can be tried, and how."""
        told = [_of_writer(name, writer) for name, writer in self.repository.writers.items()]
        for name, served in self.repository.models.items():
            version = served.any_version
            if version and (facts := _of_pictures(version.servable)):
                told.append({"name": name, **facts})
        return JSONResponse({"models": told})


def declare(repository: Repository, reader: Reader, metrics: Metrics) -> list[BaseRoute]:
    """Returns the routes of the page; see `launch.serve.app.Declare`."""
    del reader, metrics
    return Demo(repository).routes()


def _of_writer(name: str, writer: Writer) -> dict[str, Any]:
    try:
        writer.codec.chat([{"role": "user", "content": "-"}])
    except DataError:
        chat = False
    else:
        chat = True
    return {"name": name, "kind": "text", "chat": chat, "room": writer.length}


def _of_pictures(servable: Servable) -> dict[str, Any] | None:
    """Returns what the page needs of a classifier of pictures, uint8; None of anything else."""
    inputs, shares = servable.signature.inputs, servable.signature.outputs.get(_SHARES)
    if len(inputs) != 1 or shares is None or not servable.labels:
        return None
    ((name, tensor),) = inputs.items()
    _, *shape = tensor.shape
    sizes = [size for size in shape if isinstance(size, int)]
    channels = shape[2] if len(shape) == 3 else 1
    if np.dtype(tensor.dtype) != np.uint8 or len(shape) not in (2, 3) or sizes != shape:
        return None
    if channels not in (1, 3) or list(shares.shape[1:]) != [len(servable.labels)]:
        return None
    return {
        "kind": "picture",
        "input": name,
        "output": _SHARES,
        "shape": shape,
        "size": shape[:2],
        "channels": channels,
        "labels": list(servable.labels),
    }
