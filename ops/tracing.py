"""Traces: spans around the parts of a task (design §11), sent by OTLP where an endpoint is configured.

Without `OTEL_EXPORTER_OTLP_ENDPOINT` (or its variant for traces) nothing is recorded, imported or sent.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import Span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# A collector that does not answer must not hold up a process that leaves; by itself the SDK tries for 10 s.
FLUSH_S: Final = 2.0
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_tracer = trace.get_tracer("warmlane")


@contextlib.contextmanager
def tracing(role: str) -> Iterator[None]:
    """Sends the spans of this process as `warmlane-<role>` while the block runs, and what is left within FLUSH_S
    of its end."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        yield
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": f"warmlane-{role}"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        flushing = threading.Thread(target=provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)


@contextlib.contextmanager
def span(
    name: str, attributes: Mapping[str, str | int | float | bool] | None = None, *, traceparent: str | None = None
) -> Iterator[Span]:
    """A span around the block, below the current one or, where it is given, below *traceparent* (W3C).

    An exception that leaves the block marks it as failed.
    """
    parent = None
    if traceparent is not None:
        parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    with _tracer.start_as_current_span(name, context=parent, attributes=attributes) as current:
        yield current
