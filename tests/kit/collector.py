"""An OTLP/HTTP endpoint like a collector's, which keeps everything that it receives."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from msgspec import Struct
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

Labels = tuple[tuple[str, str], ...]


class SeenSpan(Struct, frozen=True, kw_only=True):
    """One span as received, with the service that sent it."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    begun_at: datetime
    ended_at: datetime
    attributes: Mapping[str, Any]
    events: tuple[str, ...]
    links: tuple[str, ...]
    error: str
    """The description of the span's status if the status is an error."""


class Collector:
    """Keeps every span, and the newest value of every series. `close` it."""

    def __init__(self, *, hand_on: Callable[[str, bytes], None] | None = None) -> None:
        """*hand_on* is called with the path and the content of every export of traces as well."""
        collector = self
        self._hand_on = hand_on

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.receive(self.path, body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Logs nothing."""

        self.paths: set[str] = set()
        self.services: set[str] = set()
        self.spans: list[SeenSpan] = []
        self._series: dict[tuple[str, str, str, Labels], float] = {}
        self._exports: Counter[tuple[str, str]] = Counter()
        self._changes: list[tuple[datetime, str, Labels, float, float]] = []
        self._turn = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def receive(self, path: str, body: bytes) -> None:
        """Takes in one export."""
        with self._turn:
            self.paths.add(path)
            if path == "/v1/traces":
                self._take_spans(ExportTraceServiceRequest.FromString(body))
            elif path == "/v1/metrics":
                self._take_metrics(ExportMetricsServiceRequest.FromString(body))
        if self._hand_on is not None and path == "/v1/traces":
            self._hand_on(path, body)

    def trace(self, trace_id: str) -> list[SeenSpan]:
        """The spans of one trace, in the order in which they began."""
        with self._turn:
            return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.begun_at)

    def series(self, name: str, **labels: str) -> dict[Labels, float]:
        """The newest values of the metric *name* with *labels*, by all of their labels, summed over processes.

        The value of a histogram is its count.
        """
        found: dict[Labels, float] = {}
        with self._turn:
            for (_, _, metric, own), value in self._series.items():
                if metric == name and labels.items() <= dict(own).items():
                    found[own] = found.get(own, 0) + value
        return found

    def value(self, name: str, **labels: str) -> float:
        """All of `series` added up; 0 where there is none."""
        return sum(self.series(name, **labels).values())

    def counted(self, name: str, **labels: str) -> float:
        """How much the counter *name* with *labels* grew in all, summed over processes and their restarts.

        The value of a histogram is its count.
        """
        with self._turn:
            return sum(
                after - before if after >= before else after  # a counter that fell was reset
                for _, metric, own, before, after in self._changes
                if metric == name and labels.items() <= dict(own).items()
            )

    def exports(self) -> dict[tuple[str, str], int]:
        """How often each process, by its service and instance, has sent its metrics."""
        with self._turn:
            return dict(self._exports)

    def changes(self, name: str, since: datetime, until: datetime, **labels: str) -> list[tuple[float, float]]:
        """Every change of a series of the metric *name* with *labels* that came between *since* and *until*: the values
        before and after. A new series was 0 before."""
        with self._turn:
            return [
                (before, after)
                for at, metric, own, before, after in self._changes
                if metric == name and since <= at <= until and labels.items() <= dict(own).items()
            ]

    def metrics(self) -> dict[str, set[str]]:
        """The name of every metric that came, and the names of its labels."""
        with self._turn:
            names: dict[str, set[str]] = {}
            for _, _, metric, own in self._series:
                names.setdefault(metric, set()).update(label for label, _ in own)
            return names

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take_spans(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            about = values(resource.resource.attributes)
            self.services.add(about["service.name"])
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        SeenSpan(
                            service=about["service.name"],
                            name=span.name,
                            kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            begun_at=datetime.fromtimestamp(span.start_time_unix_nano / 1e9, UTC),
                            ended_at=datetime.fromtimestamp(span.end_time_unix_nano / 1e9, UTC),
                            attributes=values(span.attributes),
                            events=tuple(event.name for event in span.events),
                            links=tuple(link.span_id.hex() for link in span.links),
                            error=span.status.message or "error" if span.status.code == 2 else "",
                        )
                    )

    def _take_metrics(self, request: ExportMetricsServiceRequest) -> None:
        for resource in request.resource_metrics:
            about = values(resource.resource.attributes)
            service, instance = about["service.name"], about["service.instance.id"]
            self._exports[service, instance] += 1
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    # every export has all series of a gauge: one that is missing has ended
                    if metric.HasField("gauge"):
                        gone = [key for key in self._series if key[:3] == (service, instance, metric.name)]
                        before = {key[3]: self._series.pop(key) for key in gone}
                    else:
                        before = {}
                    for labels, value in _points(metric):
                        key = (service, instance, metric.name, labels)
                        last = before.get(labels, self._series.get(key, 0.0))
                        if value != last:
                            self._changes.append((datetime.now(UTC), metric.name, labels, last, value))
                        self._series[key] = value


def values(pairs: Iterable[Any]) -> dict[str, Any]:
    """The attributes as a dict."""
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


def _points(metric: Any) -> Iterable[tuple[Labels, float]]:
    for kind in ("sum", "gauge", "histogram"):
        if metric.HasField(kind):
            for point in getattr(metric, kind).data_points:
                labels = tuple(sorted((name, str(value)) for name, value in values(point.attributes).items()))
                if kind == "histogram":
                    yield labels, float(point.count)
                else:
                    yield labels, float(getattr(point, point.WhichOneof("value")))
