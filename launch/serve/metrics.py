"""What Prometheus reads at /metrics. Labels come from what was declared, never from callers."""

import logging
import pathlib
import traceback
from collections.abc import Iterator, Mapping

import numpy as np
import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from launch.serve import drift
from lsm.generate import Engine

_log = logging.getLogger("launch.serve")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = tuple(float(2**power) for power in range(11))
_VERSION = ("model", "version")


class Metrics:
    """The metrics of one server, in a registry of their own.

    Attributes:
      registry: of prometheus_client.
    """

    def __init__(self):
        self.registry = registry = prometheus.CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> prometheus.Counter:
            return prometheus.Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> prometheus.Gauge:
            return prometheus.Gauge(name, text, labels, registry=registry)

        def histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]):
            return prometheus.Histogram(name, text, labels, registry=registry, buckets=buckets)

        self.requests = counter("lsm_requests", "Requests answered.", ("route", "status"))
        self.seconds = histogram(
            "lsm_request_seconds", "From the head of a request to its answer.", ("route",), _SECONDS
        )
        self.errors = counter("lsm_errors", "Requests refused or failed, by kind.", ("kind",))
        self.in_flight = gauge("lsm_requests_in_flight", "Requests under way.")
        self.queue = gauge("lsm_queue_length", "Requests waiting or computed.", _VERSION)
        self.waited = histogram(
            "lsm_queue_seconds", "From a request's coming to its computation.", _VERSION, _SECONDS
        )
        self.model_seconds = histogram(
            "lsm_model_seconds", "Of one call of the model.", _VERSION, _SECONDS
        )
        self.rows = histogram("lsm_batch_rows", "Rows computed together.", _VERSION, _ROWS)
        self.padding = counter("lsm_padding_rows", "Rows that fill up a batch.", _VERSION)
        self.failures = counter("lsm_model_failures", "Calls of the model that failed.", _VERSION)
        self.ready = gauge("lsm_model_ready", "1 where the version takes requests.", _VERSION)
        self.share = gauge("lsm_model_share", "Share of the requests without a version.", _VERSION)
        self.first_token = histogram(
            "lsm_first_token_seconds", "From a request to its first token.", ("model",), _SECONDS
        )
        self.drifts, self.engines = _Drifts(), _Engines()
        registry.register(self.drifts)
        registry.register(self.engines)

    def page(self) -> tuple[bytes, str]:
        """Returns the text of /metrics and its content type."""
        return prometheus.generate_latest(self.registry), prometheus.CONTENT_TYPE_LATEST

    def meter(self, model: str, version: str, folder: pathlib.Path | None) -> "Meter":
        """Returns where one version of a model tells of itself.

        Args:
          model: its name.
          version: its number.
          folder: of the artefact, with or without statistics.json; None compares with nothing.
        """
        return Meter(self, model, version, drift.read(folder) if folder else {})


class _Drifts(Collector):
    """Gauges of drift, computed when they are asked for."""

    def __init__(self):
        self.histograms: dict[tuple[str, str], Mapping[tuple[str, str], drift.Histogram]] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields both gauges for every tensor of which something was seen."""
        labels = (*_VERSION, "kind", "tensor")
        names = ("lsm_drift_psi", "lsm_drift_ks")
        texts = ("Population stability index", "Kolmogorov-Smirnov distance")
        gauges = [
            GaugeMetricFamily(name, f"{text} against the statistics at export.", labels=labels)
            for name, text in zip(names, texts, strict=True)
        ]
        for version, histograms in list(self.histograms.items()):
            for (kind, tensor), histogram in histograms.items():
                for gauge, value in zip(gauges, histogram.distances() or (), strict=False):
                    gauge.add_metric((*version, kind.removesuffix("s"), tensor), value)
        yield from gauges


class _Engines(Collector):
    """What the engines of decoders have counted, when it is asked for."""

    def __init__(self):
        self.by_model: dict[str, Engine] = {}

    def collect(self) -> Iterator[Metric]:
        """Yields each figure of all engines."""
        counted = {model: engine.counters for model, engine in list(self.by_model.items())}
        for field, (name, text) in _OF_ENGINES.items():
            gauge = field in ("waiting", "running", "positions")
            family = (GaugeMetricFamily if gauge else CounterMetricFamily)(
                name, text, labels=("model",)
            )
            for model, counters in counted.items():
                family.add_metric((model,), getattr(counters, field))
            yield family


_OF_ENGINES = {
    "waiting": ("lsm_texts_waiting", "Texts without a slot."),
    "running": ("lsm_texts_running", "Texts with a slot."),
    "positions": ("lsm_cache_positions", "Positions of the cache that texts fill."),
    "tokens": ("lsm_text_tokens", "Tokens written."),
    "read": ("lsm_prompt_tokens", "Tokens of prompts that were read."),
    "reused": ("lsm_prompt_tokens_reused", "Tokens of prompts that were there already."),
    "faults": ("lsm_text_faults", "Steps that failed."),
}


class Meter:
    """The metrics of one version of a model.

    Attributes:
      queue, waited, ready, share: metrics of `Metrics`, with their labels set.
    """

    def __init__(
        self,
        metrics: Metrics,
        model: str,
        version: str,
        histograms: Mapping[tuple[str, str], drift.Histogram],
    ):
        self._metrics, self._labels, self._histograms = metrics, (model, version), histograms
        self.queue = metrics.queue.labels(model, version)
        self.waited = metrics.waited.labels(model, version)
        self.ready = metrics.ready.labels(model, version)
        self.share = metrics.share.labels(model, version)
        self._seconds = metrics.model_seconds.labels(model, version)
        self._rows = metrics.rows.labels(model, version)
        self._padding = metrics.padding.labels(model, version)
        self._failures = metrics.failures.labels(model, version)
        metrics.drifts.histograms[self._labels] = histograms

    def batch(self, rows: int, bucket: int, seconds: float) -> None:
        """Counts one call of the model with `rows` rows, filled up to `bucket`."""
        self._rows.observe(rows)
        self._padding.inc(bucket - rows)
        self._seconds.observe(seconds)

    def seen(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Counts values for the drift, of the tensors that were looked at in the export."""
        for (kind, name), histogram in self._histograms.items():
            values = (inputs if kind == "inputs" else outputs).get(name)
            if values is not None and values.dtype != object:
                histogram.add(values)

    def failed(self, error: BaseException) -> None:
        """Counts and logs what the model raised; the refusal is counted where it is answered."""
        self._failures.inc()
        trace = "".join(traceback.format_exception(error))
        _log.error("%s/%s: the model failed: %s", *self._labels, trace)

    def stuck(self, seconds: float) -> None:
        """Counts and logs that a call does not come back."""
        self._failures.inc()
        _log.error("%s/%s: a call takes longer than %s s: not ready.", *self._labels, seconds)

    def close(self) -> None:
        """Forgets the version, so that /metrics does not tell of it for ever."""
        m = self._metrics
        for metric in (
            m.queue,
            m.waited,
            m.ready,
            m.share,
            m.model_seconds,
            m.rows,
            m.padding,
            m.failures,
        ):
            metric.remove(*self._labels)
        m.drifts.histograms.pop(self._labels, None)
