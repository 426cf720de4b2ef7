"""Spans as an OTLP/HTTP collector receives them from a real degraded worker (design §11)."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from contracts.tasks import TaskStatus
from ops.nats_link import NatsLink
from tests.degraded import DegradedProcess, becomes, place, task_of
from tests.support import NatsServer, clean_environment

ROOT = Path(__file__).parents[2]
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"


class Collector:
    """An OTLP/HTTP endpoint that keeps what it is sent."""

    def __init__(self) -> None:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.receive(self.path, body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self.paths: set[str] = set()
        self.services: set[str] = set()
        self.spans: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def receive(self, path: str, body: bytes) -> None:
        self.paths.add(path)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {
                pair.value.string_value for pair in resource.resource.attributes if pair.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.spans += [
                    {
                        "name": span.name,
                        "trace": span.trace_id.hex(),
                        "id": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "attributes": {
                            pair.key: getattr(pair.value, str(pair.value.WhichOneof("value")))
                            for pair in span.attributes
                        },
                    }
                    for span in scope.spans
                ]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


async def test_a_swap_is_in_the_trace_of_the_request(
    collector: Collector, link: NatsLink, nats_server: NatsServer, tmp_path: Path
) -> None:
    """`swap.release`, `swap.verify` and `load`, with what the receipt on the task says, below the client's span."""
    worker = DegradedProcess(
        nats_server.address, tmp_path, "degraded-0", "cpu-0", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url
    )
    try:
        first = await place(link, task_of("anisora", 1))
        second = await place(link, task_of("phr00t", 2, traceparent=f"00-{TRACE_ID}-{PARENT_ID}-01"))
        await becomes(link, first, TaskStatus.DONE)
        done = await becomes(link, second, TaskStatus.DONE)
        assert worker.stop() == 0  # what is still to be sent is sent then
    finally:
        worker.kill()
    assert (collector.paths, collector.services) == ({"/v1/traces"}, {"warmlane-degraded"})
    spans = {span["name"]: span for span in collector.spans if span["trace"] == TRACE_ID}
    assert {"swap.release", "swap.verify", "load"} <= set(spans)
    assert PARENT_ID in {span["parent"] for span in spans.values()}
    ids = {span["id"] for span in spans.values()} | {PARENT_ID}
    assert all(span["parent"] in ids for span in spans.values()), "one tree"
    receipt = done.swap
    assert receipt is not None
    figures = spans["load"]["attributes"]
    assert (figures["swap.how"], figures["swap.released_model"]) == ("unloaded", "anisora")
    assert figures["swap.after_bytes"] == receipt.after_bytes
    assert figures["swap.load_s"] == pytest.approx(receipt.load_s)
    assert figures["swap.samples"] == receipt.samples
    assert "red fox" not in str(collector.spans), "never a prompt"


PROGRAM = """
import sys
from ops.tracing import span, tracing

with tracing("test"), span("swap.release", {"model": "anisora"}):
    pass
print(*sorted({"opentelemetry.sdk", "opentelemetry.exporter", "requests"} & set(sys.modules)))
"""


def test_without_an_endpoint_nothing_is_imported_and_nothing_sent(collector: Collector) -> None:
    environment = {name: value for name, value in clean_environment().items() if not name.startswith("OTEL_")}
    imported = {}
    for endpoint in ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}):
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=environment | endpoint,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        imported[bool(endpoint)] = result.stdout.split()
        assert bool(collector.spans) is bool(endpoint)
    assert imported[False] == []
    assert "opentelemetry.sdk" in imported[True]
