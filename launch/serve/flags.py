"""The flags of a server, checked where they are given."""

import dataclasses

from launch.command import LaunchError, at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve:
    """How models are served.

    Attributes:
      host: address to listen at.
      port: to listen at; 0 takes a free one.
      keys: file of the keys, which `python -m launch.serve.keys` makes.
      no_auth: lets anyone on this machine do everything, without keys.
      tls_cert: file of the certificate chain (PEM).
      tls_key: file of its private key (PEM).
      demo: a page at /demo, on which people try the models.
      audit_log: file that gets a line for each request; by default stdout.
      traces: a span of OpenTelemetry for each request, to OTEL_EXPORTER_OTLP_ENDPOINT.
      batch_rows: rows that are computed together at the most.
      batch_wait_ms: how long the first of a batch waits for others.
      queue: requests that may wait for a model; further ones get 429, or 503 before they are read.
      model_timeout: seconds after which a model that does not answer is not ready.
      request_timeout: seconds in which a request is answered.
      client_timeout: seconds in which a client has to send a head, send a body, take an answer.
      body_mb: MiB of one body, decompressed.
      memory_mb: MiB of all bodies at a time.
      elements: numbers that the inputs of one request may have.
      slots: texts that a decoder writes at a time.
      slot_tokens: tokens of prompt and text together, at the most.
      connections: at a time.
      grace: seconds for the requests under way when the server ends.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: str | None = None
    no_auth: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    demo: bool = False
    audit_log: str | None = None
    traces: bool = False
    batch_rows: int = 32
    batch_wait_ms: float = 2.0
    queue: int = 256
    model_timeout: float = 30.0
    request_timeout: float = 60.0
    client_timeout: float = 15.0
    body_mb: int = 16
    memory_mb: int = 512
    elements: int = 4 * 2**20
    slots: int = 8
    slot_tokens: int = 2048
    connections: int = 1024
    grace: float = 30.0

    def __post_init__(self):
        from launch.serve.gate import is_loopback

        positive = ("batch_rows", "queue", "body_mb", "memory_mb", "elements", "connections")
        for name in (*positive, "slots"):
            at_least(name, getattr(self, name), 1)
        at_least("slot_tokens", self.slot_tokens, 2)
        for name in ("port", "batch_wait_ms", "grace"):
            at_least(name, getattr(self, name), 0)
        for name in ("model_timeout", "request_timeout", "client_timeout"):
            if getattr(self, name) <= 0:
                raise LaunchError(f"--{name}: {getattr(self, name)} given; above 0 is needed.")
        if self.port > 65535:
            raise LaunchError(f"--port: {self.port} given; at most 65535.")
        if self.no_auth == (self.keys is not None):
            raise LaunchError(
                "--keys=FILE is needed (python -m launch.serve.keys add --file=FILE ... makes it), "
                "or --no_auth for this machine alone; and not both."
            )
        if self.no_auth and not is_loopback(self.host):
            raise LaunchError(f"--no_auth: only with a loopback address, not --host={self.host}.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise LaunchError("--tls_cert and --tls_key: both are needed, or none.")
