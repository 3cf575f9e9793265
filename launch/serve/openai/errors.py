"""How the protocol tells of what is refused."""

from typing import Any

from launch.serve.refusal import Refused

_TYPES = {
    "unauthorised": ("invalid_request_error", "invalid_api_key"),
    "forbidden": ("invalid_request_error", "insufficient_permissions"),
    "rate": ("requests", "rate_limit_exceeded"),
    "quota": ("insufficient_quota", "insufficient_quota"),
    "queue_full": ("server_error", "queue_full"),
}
"""Type and code by the kind of a refusal, where clients know them."""


class Wrong(Refused):
    """A request is wrong, and a field of it says where.

    Attributes:
      param: the field.
      code: a word for programs, of those that clients know; None without.
    """

    def __init__(self, param: str, line: str, code: str | None = None, status: int = 400):
        super().__init__(status, "not_found" if status == 404 else "malformed", line)
        self.param, self.code = param, code


def told(refused: Refused) -> dict[str, Any]:
    """Returns `{"error": {"message", "type", "param", "code"}}`."""
    default = "server_error" if refused.status >= 500 else "invalid_request_error"
    kind, code = _TYPES.get(refused.kind, (default, None))
    param = None
    if isinstance(refused, Wrong):
        param, code = refused.param, refused.code
    return {"error": {"message": str(refused), "type": kind, "param": param, "code": code}}
