"""Spans of OpenTelemetry: named by route, children of the caller's, sent by OTLP."""
# ruff: noqa: E402

import gzip
import http.server
import importlib.util
import json
import threading

import pytest
from serving import Double, serving, until
from writing import run

for needed in ("sdk", "instrumentation.asgi", "exporter.otlp.proto.http"):
    pytest.importorskip(f"opentelemetry.{needed}", reason="the extra `traces` is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from launch.command import LaunchError
from launch.serve import traces

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def kept():
    """A provider, and where its spans are."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def the_spans(exporter, count):
    until(lambda: len(exporter.get_finished_spans()) == count)
    return exporter.get_finished_spans()


def test_a_span_tells_of_route_request_key_and_times(tmp_path, kept):
    provider, exporter = kept
    with serving(tmp_path, traced=provider) as server:
        named = {"X-Request-Id": "mine", "traceparent": CALLER}
        assert server.infer([[1, 2, 3], [4, 5, 6]], headers=named)[0] == 200
        (span,) = the_spans(exporter, 1)
    assert span.name == "POST /v2/models/{model}/infer"
    assert f"{span.context.trace_id:032x}-{span.parent.span_id:016x}" == CALLER[3:52]
    told = span.attributes
    assert told["lsm.request"] == "mine" and told["lsm.batch_rows"] == 2
    assert told["lsm.key"] and "lsm.kind" not in told
    took = (span.end_time - span.start_time) / 1e9
    assert told["lsm.model_seconds"] > 0 and 0 <= told["lsm.queue_seconds"] < took
    assert told["lsm.model_seconds"] < took


def test_refused_requests_have_spans_and_paths_are_not_their_names(tmp_path, kept):
    provider, exporter = kept
    with serving(tmp_path, traced=provider) as server:
        assert server.request("GET", "/v2/health/live", key=None)[0] == 200  # a probe: no span
        assert server.request("GET", "/any/path?of=theirs", key=None)[0] == 401
        assert server.infer([[1, 2, 3]], model="nobody")[0] == 404
        assert server.request("PURGE", "/v2")[0] == 405
        first, second, third = the_spans(exporter, 3)
    assert (first.name, first.attributes["lsm.kind"]) == ("GET none", "unauthorised")
    assert (second.name, second.attributes["lsm.kind"]) == (
        "POST /v2/models/{model}/infer",
        "not_found",
    )
    assert third.name == "HTTP /v2"


def test_no_span_has_anything_of_another_request(tmp_path, kept):
    """Requests that share a batch each tell of their own."""
    provider, exporter = kept
    model = Double()
    with serving(tmp_path, {"double": lambda folder: model}, traced=provider) as server:
        model.hold.clear()
        threads = [
            threading.Thread(
                target=server.infer,
                args=[[[n, n, n]]],
                kwargs={"headers": {"X-Request-Id": str(n)}},
            )
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        until(lambda: server.gate.in_flight == 6)
        model.hold.set()
        for thread in threads:
            thread.join()
        spans = the_spans(exporter, 6)
    assert {span.attributes["lsm.request"] for span in spans} == set("012345")
    assert max(span.attributes["lsm.batch_rows"] for span in spans) > 1


@pytest.mark.slow
def test_a_text_tells_when_its_first_token_came(tmp_path, kept):
    provider, exporter = kept
    with serving(tmp_path, {}, runs={"writer": run(tmp_path / "run")}, traced=provider) as server:
        body = {"model": "writer", "prompt": "o", "max_tokens": 3, "stream": True}
        assert server.request("POST", "/v1/completions", body)[0] == 200
        (span,) = the_spans(exporter, 1)
    assert span.name == "POST /v1/completions"
    assert span.attributes["lsm.first_token_seconds"] > 0


def test_spans_go_where_the_environment_says_the_last_ones_at_the_end(monkeypatch):
    came = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            came.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{collector.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", where)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment=try")
        with traces.exported() as provider, provider.get_tracer("t").start_as_current_span("a"):
            traces.note("b", rows=3, nothing=None)
        collector.shutdown()
    ((path, request),) = came
    assert path == "/v1/traces"
    (resource,) = request.resource_spans
    told = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert told["service.name"] == "lsm" and told["deployment"] == "try"
    (span,) = resource.scope_spans[0].spans
    assert span.name == "b"
    assert [(a.key, a.value.int_value) for a in span.attributes] == [("lsm.rows", 3)]


def test_without_a_span_nothing_is_noted():
    traces.note("x", rows=1)


def test_what_is_not_installed_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.endswith("asgi") else find(name)
    )
    with pytest.raises(LaunchError, match=r"--traces: .*asgi is not installed: pip install 'lsm\["):
        traces.check()


def test_a_traced_server_answers_as_the_other(tmp_path, kept):
    with serving(tmp_path / "a") as plain, serving(tmp_path / "b", traced=kept[0]) as traced:
        for method, path in (("GET", "/v2"), ("GET", "/v2/models/double"), ("PUT", "/v2")):
            one, other = (server.request(method, path) for server in (plain, traced))
            assert one[0] == other[0] and json.loads(one[2]) == json.loads(other[2])
