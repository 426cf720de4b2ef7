"""A root that is sent ahead: which requests wait for the collector, and which do not."""

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ops.telemetry import sending
from ops.telemetry.export import tracer_provider
from ops.telemetry.sending import Sender
from tests.kit.support import eventually


class Steered(SpanExporter):
    """A collector that answers when *may_answer* is set, and keeps what it is sent. *was_asked* is set before."""

    def __init__(self) -> None:
        self.may_answer, self.was_asked = threading.Event(), threading.Event()
        self.names: list[str] = []
        self.result = SpanExportResult.SUCCESS
        self.error: Exception | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.was_asked.set()
        assert self.may_answer.wait(60)
        self.names += [span.name for span in spans]
        if self.error is not None:
            raise self.error
        return self.result


class Sending:
    """A sender, and its two ways to a collector."""

    def __init__(self) -> None:
        self.together, self.ahead = InMemorySpanExporter(), Steered()
        self.sender = Sender(self.together, self.ahead, delay_ms=600_000)
        provider = tracer_provider()
        provider.add_span_processor(self.sender)
        self.tracer = provider.get_tracer("test")

    async def end(self, name: str) -> None:
        await self.sender.end_ahead(self.tracer.start_span(name))

    def close(self) -> None:
        self.ahead.may_answer.set()
        self.sender.shutdown()


@pytest.fixture
def sends() -> Iterator[Sending]:
    sends = Sending()
    yield sends
    sends.close()


async def test_a_root_is_there_when_its_request_goes_on(sends: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was sent ahead is not sent with the rest."""
    monkeypatch.setattr(sending, "WAIT_S", 60.0)
    waits = asyncio.create_task(sends.end("accept"))
    await asyncio.sleep(0)
    assert not waits.done()
    sends.ahead.may_answer.set()
    await waits
    sends.tracer.start_span("POST /generate").end()
    assert sends.ahead.names == ["accept"]
    sends.close()
    assert [span.name for span in sends.together.get_finished_spans()] == ["POST /generate"]


async def test_a_collector_that_does_not_answer_is_waited_for_once(
    sends: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All wait for it again once it answers; it is then sent what it has missed."""
    monkeypatch.setattr(sending, "WAIT_S", 0.01)
    await sends.end("first")
    monkeypatch.setattr(sending, "WAIT_S", 600.0)
    await sends.end("second")  # or this test takes ten minutes
    sends.ahead.may_answer.set()
    await eventually(lambda: asyncio.sleep(0, len(sends.ahead.names) == 2))
    sends.ahead.may_answer.clear()
    sends.ahead.was_asked.clear()
    third = asyncio.create_task(sends.end("third"))
    await asyncio.to_thread(sends.ahead.was_asked.wait)  # the sender has taken in the answers before it
    waits = asyncio.create_task(sends.end("fourth"))
    await asyncio.sleep(0)
    assert not waits.done()
    sends.ahead.may_answer.set()
    await asyncio.gather(third, waits)
    assert sends.ahead.names == ["first", "second", "third", "fourth"]


@pytest.mark.parametrize("error", [None, RuntimeError("a plugin of the SDK's")])
async def test_a_collector_that_is_away_holds_nobody_up(
    error: Exception | None, sends: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "WAIT_S", 600.0)
    sends.ahead.result, sends.ahead.error = SpanExportResult.FAILURE, error
    sends.ahead.may_answer.set()
    await sends.end("first")
    sends.ahead.may_answer.clear()
    await sends.end("second")


async def test_what_is_waiting_when_a_process_leaves_is_sent(sends: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "WAIT_S", 0.0)
    for name in ("first", "second", "third"):
        await sends.end(name)
    sends.close()
    assert sends.ahead.names == ["first", "second", "third"]
