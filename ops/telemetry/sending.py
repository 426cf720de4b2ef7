"""How spans leave a process: most go together once a second; a root goes before other spans can be below it (ADR
0036)."""

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Final

import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind

from ops.telemetry.tracing import OUTCOME, SUPERSEDED

# The longest that a request waits for the collector. After a slower answer no request waits, until the collector is
# fast again.
WAIT_S: Final = 0.25
# The pause between exports. Each export costs its process some milliseconds: under load many roots go together.
PAUSE_S: Final = 0.01
# The most roots that are kept while a collector is away: as many as the SDK keeps of other spans.
KEPT: Final = 2048

log = structlog.get_logger("telemetry")

_Waiting = tuple[ReadableSpan, Future[None]]


class Sender(BatchSpanProcessor):
    """Sends every span that ends, except that of an attempt that another process has recorded (`superseded`, ADR 0034).

    It sends the span of an attempt as soon as it ends, with all spans that wait: those below it ended before it.
    """

    def __init__(self, exporter: SpanExporter, ahead: SpanExporter, *, delay_ms: float) -> None:
        """*ahead* goes to the same collector as *exporter*, on a connection of its own. *delay_ms* is how long a span
        waits for others."""
        super().__init__(exporter, schedule_delay_millis=delay_ms)
        self._ahead = ahead
        self._expected: dict[int, Future[None]] = {}
        self._waiting: deque[_Waiting] = deque(maxlen=KEPT)
        self._flushes = self._is_over = False
        self._is_prompt = True
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
        self._thread.start()

    async def end_ahead(self, span: Span) -> None:
        """Ends *span*, and returns when the collector has it.

        It waits for WAIT_S at most. After the collector was away or slower, no request waits until it answers in time
        again.
        """
        sent: Future[None] = Future()
        self._expected[span.get_span_context().span_id] = sent
        span.end()
        if self._is_prompt:
            _, late = await asyncio.wait({asyncio.wrap_future(sent)}, timeout=WAIT_S)
            if late:
                self._is_prompt = False

    def on_end(self, span: ReadableSpan) -> None:
        """Takes in a span that has ended."""
        if (span.attributes or {}).get(OUTCOME) == SUPERSEDED:
            return
        sent = self._expected.pop(span.context.span_id, None)
        if sent is not None:
            self._waiting.append((span, sent))
            self._news.set()
            return
        super().on_end(span)
        if span.kind is SpanKind.CONSUMER:
            self._flushes = True
            self._news.set()

    def shutdown(self) -> None:
        """Sends what is left."""
        self._is_over = True
        self._news.set()
        self._thread.join()
        self._ahead.shutdown()
        super().shutdown()  # type: ignore[no-untyped-call]

    def _run(self) -> None:
        while not self._is_over:
            self._news.wait()
            self._news.clear()
            self._send_ahead()
            if self._flushes:
                self._flushes = False
                self.force_flush()
            time.sleep(PAUSE_S)
        self._send_ahead()

    def _send_ahead(self) -> None:
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not batch:
            return
        since_s = time.monotonic()
        try:
            is_sent = self._ahead.export([span for span, _ in batch]) is SpanExportResult.SUCCESS
        except Exception as error:  # raised by a plugin of the SDK: no reason to stop sending
            log.warning("spans_lost", spans=len(batch), error=f"{type(error).__name__}: {error}")
            is_sent = False
        self._is_prompt = is_sent and time.monotonic() - since_s <= WAIT_S
        for _, sent in batch:
            sent.set_result(None)
