"""What is answered instead of a result: a status, and one line that says why."""

import json
from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from lsm.errors import LsmError


class Refused(LsmError):
    """A request is not answered.

    Attributes:
      status: of HTTP.
      kind: a word for the metrics, of a small fixed set.
      retry_after: seconds after which to come again, where that helps.
    """

    def __init__(self, status: int, kind: str, line: str, retry_after: float | None = None):
        super().__init__(line)
        self.status, self.kind, self.retry_after = status, kind, retry_after


def malformed(line: str) -> Refused:
    """Returns the refusal of a request that is wrong in itself."""
    return Refused(400, "malformed", line)


Told = Callable[[Refused], dict[str, Any]]
"""How a protocol tells of a refusal: the JSON of the answer."""


def plain(refused: Refused) -> dict[str, Any]:
    """Returns `{"error": "one line"}`."""
    return {"error": str(refused)}


def response(refused: Refused, told: Told = plain) -> Response:
    """Returns what is told, with Retry-After and WWW-Authenticate where they belong."""
    headers = {}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(refused.retry_after + 0.5)))
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = json.dumps(told(refused))
    return Response(body, refused.status, headers, media_type="application/json")
