"""Spans of the process that tests run in."""

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ops.telemetry.export import tracer_provider


def kept_spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Keeps every span that ends from now on. Spans are made as in a process that exports them."""
    spans = InMemorySpanExporter()
    provider = tracer_provider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("ops.telemetry.tracing._tracer", provider.get_tracer("test"))
    monkeypatch.setattr("ops.telemetry.tracing._is_on", True)
    return spans
