"""A server of `launch.serve`, asked over HTTP: its versions, shares, and figures of a version."""

import dataclasses
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from launch.command import LaunchError
from launch.serve.tensors import datatype
from lsm.errors import shortened
from lsm.files import parsed_json

_NUMBERS = 1 << 17  # in one request: some MiB of JSON, a fraction of what a body may have


class Conflict(LaunchError):
    """The server will not: a version cannot be loaded, or is not ready."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a version has done since it was loaded.

    Attributes:
      answered: requests that it has computed.
      failed: calls of the model that failed.
      calls: calls of the model.
      call_seconds: of all of them.
      drift: the largest population stability index of an output; NaN where none is known.
    """

    answered: float = 0.0
    failed: float = 0.0
    calls: float = 0.0
    call_seconds: float = 0.0
    drift: float = float("nan")

    def since(self, before: "Seen") -> "Seen":
        """Returns what came after `before`; all, where the server was started again since."""
        names = ("answered", "failed", "calls", "call_seconds")
        less = {name: getattr(self, name) - getattr(before, name) for name in names}
        return self if min(less.values()) < 0 else dataclasses.replace(self, **less)


@dataclasses.dataclass(frozen=True)
class Server:
    """One model of a server.

    Attributes:
      url: "http://127.0.0.1:8000".
      key: with the scopes admin, metrics and infer; None where it asks for none.
      model: its name there.
    """

    url: str
    key: str | None
    model: str

    def versions(self) -> dict[str, dict[str, Any]]:
        """Returns "state" and "share" of the versions that are loaded, by number."""
        found = self._json("POST", "/v2/repository/index", {})
        return {one["version"]: one for one in found if one["name"] == self.model}

    def load(self, number: str) -> None:
        """Loads a version beside the others; it gets no requests yet."""
        self._admin("load", {"parameters": {"version": number}})

    def unload(self, number: str) -> None:
        """Takes a version out of service."""
        self._admin("unload", {"parameters": {"version": number}})

    def share(self, shares: Mapping[str, float]) -> None:
        """Divides the requests that name no version; those not named get none."""
        self._admin("share", {"shares": dict(shares)})

    def said(self, number: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the output "label" of a version for columns (B, ...), asked for in pieces."""
        rows = len(next(iter(columns.values())))
        step = max(1, _NUMBERS * rows // sum(x.size for x in columns.values()))
        pieces = [
            {name: x[begin : begin + step] for name, x in columns.items()}
            for begin in range(0, rows, step)
        ]
        return np.concatenate([self._said(number, piece) for piece in pieces])

    def _said(self, number: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        inputs = [
            {
                "name": name,
                "datatype": datatype(x.dtype),
                "shape": list(x.shape),
                "data": x.ravel().tolist(),
            }
            for name, x in columns.items()
        ]
        path = f"/v2/models/{self.model}/versions/{number}/infer"
        answer = self._json("POST", path, {"inputs": inputs, "outputs": [{"name": "label"}]})
        return np.asarray(answer["outputs"][0]["data"])

    def seen(self, number: str) -> Seen:
        """Returns what /metrics says of a version."""
        from prometheus_client.parser import text_string_to_metric_families

        found: dict[str, float] = {}
        drift = []
        for family in text_string_to_metric_families(self._ask("GET", "/metrics").decode()):
            for sample in family.samples:
                labels = sample.labels
                if (labels.get("model"), labels.get("version")) != (self.model, number):
                    continue
                found[sample.name] = sample.value
                if sample.name == "lsm_drift_psi" and labels["kind"] == "output":
                    drift.append(sample.value)
        return Seen(
            answered=found.get("lsm_queue_seconds_count", 0.0),
            failed=found.get("lsm_model_failures_total", 0.0),
            calls=found.get("lsm_model_seconds_count", 0.0),
            call_seconds=found.get("lsm_model_seconds_sum", 0.0),
            drift=max(drift, default=float("nan")),
        )

    def _admin(self, verb: str, body: Mapping[str, Any]) -> None:
        self._ask("POST", f"/v2/repository/models/{self.model}/{verb}", body)

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        try:
            return parsed_json(self._ask(method, path, body))
        except ValueError as error:
            raise LaunchError(f"--server: {self.url}{path} answers no JSON.") from error

    def _ask(self, method: str, path: str, body: Any = None) -> bytes:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:  # loading compiles
                return answer.read()
        except urllib.error.HTTPError as error:
            told = shortened(error.read(2000).decode(errors="replace"), 300)
            kind = Conflict if error.code == 409 else LaunchError
            raise kind(f"--server: {path}: {error.code}: {told}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise LaunchError(f"--server: {self.url}: {reason}.") from error


def checked_url(text: str) -> str:
    """Returns a server's address without '/' at its end. Raises LaunchError where it is none."""
    found = urllib.parse.urlsplit(text)
    if found.scheme not in ("http", "https") or not found.hostname or found.path.strip("/"):
        raise LaunchError(f"--server: {text!r} given; http://HOST:PORT is needed.")
    return text.rstrip("/")
