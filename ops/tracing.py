"""Spans around the parts of a task (design §11): one trace from the request to the end, over all processes.

They cost nothing until `ops/telemetry.py` sets an exporter up. A span of something that another process did, or that
was over before anybody knew that it mattered, is `record`ed afterwards with its own times.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from contracts.tasks import GenerationTask

Attributes = Mapping[str, str | int | float | bool]
PRODUCER: Final = SpanKind.PRODUCER
CONSUMER: Final = SpanKind.CONSUMER
TRACEPARENT: Final = "traceparent"

_tracer = trace.get_tracer("warmlane")
_is_on = False
_task_id: ContextVar[str | None] = ContextVar("task_id", default=None)
_propagator = TraceContextTextMapPropagator()


def switch_on() -> None:
    """There is somebody from now on to whom spans are sent."""
    global _is_on
    _is_on = True


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    traceparent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    unless: tuple[type[Exception], ...] = (),
) -> contextlib.AbstractContextManager[Span]:
    """A span around the block, below the current one or, where it is given, below *traceparent* (W3C).

    An exception that leaves the block marks it as failed, by its class alone: its text may quote a request. Those of
    *unless* do not, being no failure: somebody else was faster.
    """
    if traceparent is None and not _is_on and not trace.get_current_span().get_span_context().is_valid:
        return _NO_SPAN  # nobody records it, and it has nothing to hand on
    return _span(name, attributes, traceparent=traceparent, kind=kind, unless=unless)


_NO_SPAN: Final = contextlib.nullcontext[Span](trace.INVALID_SPAN)


@contextlib.contextmanager
def _span(
    name: str,
    attributes: Attributes | None,
    *,
    traceparent: str | None,
    kind: SpanKind,
    unless: tuple[type[Exception], ...],
) -> Iterator[Span]:
    with _tracer.start_as_current_span(
        name,
        context=_context(traceparent),
        kind=kind,
        attributes=_of(attributes),
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except unless as error:
            current.set_attribute("came_to_nothing", type(error).__name__)
            raise
        except Exception as error:
            failed(current, type(error).__name__)
            raise


def record(
    name: str,
    begun_at: datetime,
    ended_at: datetime,
    attributes: Attributes | None = None,
    *,
    traceparent: str | None = None,
    events: Sequence[tuple[str, datetime, Attributes]] = (),
    error: str | None = None,
) -> None:
    """A span of what happened from *begun_at* to *ended_at*; *error* says why it failed, if it did."""
    past = _tracer.start_span(name, context=_context(traceparent), attributes=_of(attributes), start_time=_ns(begun_at))
    for event, at, details in events:
        past.add_event(event, details, timestamp=_ns(at))
    if error is not None:
        failed(past, error)
    past.end(end_time=max(_ns(begun_at), _ns(ended_at)))


@contextlib.contextmanager
def working_on(task: GenerationTask) -> Iterator[None]:
    """Every span of the block is of *task*, also those of code that knows no tasks."""
    token = _task_id.set(task.id)
    try:
        yield
    finally:
        _task_id.reset(token)


def current_span() -> Span:
    """The span that this code runs in."""
    return trace.get_current_span()


def traceparent_of(span: Span) -> str | None:
    """The W3C `traceparent` by which another process continues below *span*; None where nothing is traced."""
    if not span.get_span_context().is_valid:
        return None
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context=trace.set_span_in_context(span))
    return carrier.get(TRACEPARENT)


def failed(span: Span, code: str, detail: str = "") -> None:
    """Marks *span* as failed, by a *code* from a short list; *detail* is for people, and holds nothing of a request."""
    span.set_status(Status(StatusCode.ERROR, f"{code}: {detail}" if detail else code))
    span.set_attribute("error.type", code)


def of_task(task: GenerationTask, **more: Any) -> dict[str, Any]:
    """The attributes that every span of *task* has."""
    return {"task.id": task.id, "model": task.model, "route": task.route, "epoch": task.epoch, **more}


def of_message(task: GenerationTask, operation: str, stream: str) -> dict[str, Any]:
    """The messaging attributes (semantic conventions) of sending or processing *task*'s queue message."""
    return {
        "messaging.system": "nats",
        "messaging.operation.type": operation,
        "messaging.destination.name": stream,
        "messaging.destination.template": f"{task.route}.{task.model}.{{task}}",
        "messaging.message.id": task.message_id,
        **of_task(task),
    }


def _of(attributes: Attributes | None) -> Attributes | None:
    task_id = _task_id.get()
    return attributes if task_id is None else {"task.id": task_id, **(attributes or {})}


def _context(traceparent: str | None) -> Context | None:
    return None if traceparent is None else _propagator.extract({TRACEPARENT: traceparent})


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1e9)
