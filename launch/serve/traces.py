"""Traces: a span of OpenTelemetry for each request, where they are asked for.

Where spans go, which are kept and how the service is named is what OpenTelemetry's SDK reads from
the environment: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME and others.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp

from launch.command import require_installed

_NEEDED = (
    "opentelemetry.sdk",
    "opentelemetry.exporter.otlp.proto.http",
    "opentelemetry.instrumentation.asgi",
)
_API = "opentelemetry.trace"
_PROBES = "/v2/health/(live|ready)$"


def check() -> None:
    """Raises LaunchError where OpenTelemetry is not installed."""
    require_installed("serve,traces", _NEEDED, "--traces: ")


@contextlib.contextmanager
def exported() -> Iterator[Any]:
    """Gives a `TracerProvider` that sends spans by OTLP over HTTP; at the end, what is left."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    given = OTELResourceDetector().detect()
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "lsm"}).merge(given))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield provider
    finally:
        provider.shutdown()


def around(app: ASGIApp, provider: Any) -> ASGIApp:
    """Returns `app` with a span around each request but probes, child of the caller's.

    The gate names it by its route: a path comes from the caller, and could be any.
    """
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.metrics import NoOpMeterProvider

    return OpenTelemetryMiddleware(
        app,
        excluded_urls=_PROBES,
        default_span_details=lambda scope: ("HTTP", {}),
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),  # /metrics has them
        exclude_spans=["receive", "send"],  # of each piece of a body
    )


def note(name: str | None = None, **attributes: Any) -> None:
    """Adds `lsm.ATTRIBUTE` to the span of the request that this is called for, if there is one.

    Args:
      name: what the span is called from now on.
      attributes: texts and numbers; None is left out.
    """
    if (trace := sys.modules.get(_API)) is None:  # it takes half a second to import
        return
    span = trace.get_current_span()
    if not span.is_recording():
        return
    if name is not None:
        span.update_name(name)
    given = {f"lsm.{key}": value for key, value in attributes.items() if value is not None}
    span.set_attributes(given)
