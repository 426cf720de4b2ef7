"""Spans around the parts of a task (design §11): one trace from the request to the end, over all processes.

They cost nothing until `ops/telemetry/export.py` sets up an exporter. A span of something that another process did, or
that was over before anybody knew that it mattered, is `record`ed afterwards with its own times.
"""

import contextlib
import secrets
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from contracts.tasks import GenerationTask
from contracts.topology import WORK_CONSUMER

Attributes = Mapping[str, str | int | float | bool]
PRODUCER: Final = SpanKind.PRODUCER
CONSUMER: Final = SpanKind.CONSUMER
TRACEPARENT: Final = "traceparent"
OUTCOME: Final = "warmlane.outcome"
SUPERSEDED: Final = "superseded"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

_tracer = trace.get_tracer("warmlane")
_is_on = False
_task_id: ContextVar[str | None] = ContextVar("task_id", default=None)
_propagator = TraceContextTextMapPropagator()
_chosen_id: ContextVar[int | None] = ContextVar("span_id", default=None)
_root: ContextVar[Span | None] = ContextVar("root", default=None)


async def _end(span: Span) -> None:
    span.end()


_end_ahead: Callable[[Span], Awaitable[None]] = _end


def switch_on(end_ahead: Callable[[Span], Awaitable[None]]) -> None:
    """From now on spans are sent. *end_ahead* ends a span, and returns when the collector has it."""
    global _is_on, _end_ahead
    _is_on, _end_ahead = True, end_ahead


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    traceparent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    unless: tuple[type[Exception], ...] = (),
    itself: str | None = None,
    after: str | None = None,
) -> contextlib.AbstractContextManager[Span]:
    """A span around the block, below the current one or, where it is given, below *traceparent* (W3C).

    *itself* is the `traceparent` that names the span (`attempt_below`). *after* is the `traceparent` of a span to which
    it is linked. An exception that leaves the block marks the span as failed, with its class and its frames; its text
    may quote a request, and is left out. An exception of *unless* is no failure: another process was faster.
    """
    if _is_untraced(traceparent):
        return _NO_SPAN
    return _span(name, attributes, traceparent=traceparent, kind=kind, unless=unless, itself=itself, after=after)


def _is_untraced(traceparent: str | None) -> bool:
    """Whether a span here is neither recorded nor passed on: there is no *traceparent*, no exporter and no current
    span."""
    return traceparent is None and not _is_on and not trace.get_current_span().get_span_context().is_valid


_NO_SPAN: Final = contextlib.nullcontext[Span](trace.INVALID_SPAN)


@contextlib.contextmanager
def _span(
    name: str,
    attributes: Attributes | None,
    *,
    traceparent: str | None,
    kind: SpanKind,
    unless: tuple[type[Exception], ...],
    itself: str | None,
    after: str | None,
) -> Iterator[Span]:
    with _known_by(itself):
        begun = _tracer.start_span(
            name, context=_context(traceparent), kind=kind, attributes=_of(attributes), links=_links(after)
        )
    with trace.use_span(begun, end_on_exit=True, record_exception=False, set_status_on_exception=False) as current:
        try:
            yield current
        except unless as error:
            current.set_attribute("warmlane.came_to_nothing", type(error).__name__)
            raise
        except Exception as error:
            failed(current, type(error).__name__, where="".join(traceback.format_tb(error.__traceback__)))
            raise


def record(
    name: str,
    begun_at: datetime,
    ended_at: datetime,
    attributes: Attributes | None = None,
    *,
    traceparent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    events: Sequence[tuple[str, datetime, Attributes]] = (),
    error: str | None = None,
    itself: str | None = None,
) -> str | None:
    """A span of what happened from *begun_at* to *ended_at*; *error* says why it failed, if it did.

    *itself* is the `traceparent` that names the span. Returns the `traceparent` that the span has, as `traceparent_of`.
    """
    if _is_untraced(traceparent):
        return None
    with _known_by(itself):
        past = _tracer.start_span(
            name, context=_context(traceparent), kind=kind, attributes=_of(attributes), start_time=_ns(begun_at)
        )
    for event, at, details in events:
        past.add_event(event, details, timestamp=_ns(at))
    if error is not None:
        failed(past, error, at=max(begun_at, ended_at))
    past.end(end_time=max(_ns(begun_at), _ns(ended_at)))
    return traceparent_of(past)


def attempt_below(sender: str | None) -> str | None:
    """The `traceparent` of a span that is still to come, below *sender*; None where nothing is traced.

    A claim stores it. If the worker is lost, the process that finds out can then record the span, and the spans below
    it keep their parent.
    """
    context = _span_context(sender) if _is_on else None
    if context is None:
        return None
    return f"00-{context.trace_id:032x}-{_random_id():016x}-{int(context.trace_flags):02x}"


def chosen_id() -> int:
    """The id of the span that begins now: the one that was chosen for it, or a random one."""
    chosen = _chosen_id.get()
    return _random_id() if chosen is None else chosen


@contextlib.contextmanager
def root(name: str, context: Context) -> Iterator[None]:
    """A root span around the block, in *context*, which may hold a caller's span. Other processes put their spans below
    it.

    It ends where the block calls `send_root`, or else with the block. It does not become the current span.
    """
    if not _is_on:
        yield
        return
    begun = _tracer.start_span(name, context)
    token = _root.set(begun)
    try:
        yield
    finally:
        _root.reset(token)
        if begun.is_recording():
            begun.end()


def current_root() -> Span:
    """The root that this code runs for, which may have ended; an invalid span where there is none."""
    return _root.get() or trace.INVALID_SPAN


def below_root() -> contextlib.AbstractContextManager[Span]:
    """Spans of the block go below the root. Below a span that lasts longer they might have no parent, since that span
    may never be sent."""
    begun = _root.get()
    if begun is None:
        return _NO_SPAN
    return trace.use_span(begun, record_exception=False, set_status_on_exception=False)


async def send_root(attributes: Attributes) -> None:
    """Ends the root, with *attributes*, and returns when the collector has it, or does not answer (ADR 0036). Await it
    before another process can learn of the trace: then the trace has its root, whichever process is killed. It does
    nothing where there is no root, or where the root has ended.
    """
    begun = current_root()
    if begun.is_recording():
        begun.set_attributes(attributes)
        await _end_ahead(begun)


@contextlib.contextmanager
def working_on(task: GenerationTask) -> Iterator[None]:
    """Every span of the block gets the id of *task*, even in code that knows no tasks."""
    token = _task_id.set(task.id)
    try:
        yield
    finally:
        _task_id.reset(token)


def current_span() -> Span:
    """The span that this code runs in."""
    return trace.get_current_span()


def link_to(traceparent: str | None) -> None:
    """Links the current span to the one that *traceparent* names."""
    for link in _links(traceparent):
        trace.get_current_span().add_link(link.context)


def traceparent_of(span: Span) -> str | None:
    """The W3C `traceparent` by which another process continues below *span*; None where nothing is traced."""
    if not span.get_span_context().is_valid:
        return None
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context=trace.set_span_in_context(span))
    return carrier.get(TRACEPARENT)


def failed(span: Span, code: str, detail: str = "", *, where: str = "", at: datetime | None = None) -> None:
    """Marks *span* as failed, by a *code* from a short list, and records that as an exception (*at* a past time).

    *detail* is for people, *where* is a stack of frames; neither holds anything of a request.
    """
    text = f"{code}: {detail}" if detail else code
    span.set_status(Status(StatusCode.ERROR, text))
    span.set_attribute("error.type", code)
    exception = {"exception.type": code, "exception.message": detail or code}
    if where:
        exception["exception.stacktrace"] = where
    span.add_event("exception", exception, timestamp=None if at is None else _ns(at))


def of_task(task: GenerationTask, **more: Any) -> dict[str, Any]:
    """The attributes that every span of *task* has."""
    return {
        "task.id": task.id,
        "model": task.model,
        "warmlane.route": task.route,
        "warmlane.epoch": task.epoch,
        **{name if "." in name else f"warmlane.{name}": value for name, value in more.items()},
    }


def of_attempt(task: GenerationTask) -> dict[str, Any]:
    """The attributes of an attempt at *task*, which is claimed: its worker, and the number of the attempt."""
    return {"warmlane.worker": task.worker or "", "warmlane.attempt": task.attempt, **_GROUP}


_GROUP: Final = {"messaging.consumer.group.name": WORK_CONSUMER}


def of_message(task: GenerationTask, operation: str, stream: str) -> dict[str, Any]:
    """The messaging attributes (semantic conventions) of an *operation*, `publish` or `process`, on *task*'s message.
    `message_name` names the span."""
    return {
        "messaging.system": "nats",
        "messaging.operation.name": operation,
        "messaging.operation.type": "send" if operation == "publish" else operation,
        "messaging.destination.name": stream,
        "messaging.destination.template": f"{task.route}.{task.model}.{{task}}",
        "messaging.message.id": task.message_id,
        **of_task(task),
    }


def message_name(operation: str, stream: str) -> str:
    """The name of a span of *operation* on a message of *stream*, by the semantic conventions."""
    return f"{operation} {stream}"


def _of(attributes: Attributes | None) -> Attributes | None:
    task_id = _task_id.get()
    return attributes if task_id is None else {"task.id": task_id, **(attributes or {})}


def _random_id() -> int:
    return secrets.randbits(64) or 1


@contextlib.contextmanager
def _known_by(traceparent: str | None) -> Iterator[None]:
    itself = _span_context(traceparent)
    token = _chosen_id.set(None if itself is None else itself.span_id)
    try:
        yield
    finally:
        _chosen_id.reset(token)


def _links(traceparent: str | None) -> Sequence[Link]:
    linked = _span_context(traceparent)
    return [] if linked is None else [Link(linked)]


def _span_context(traceparent: str | None) -> SpanContext | None:
    if not traceparent:
        return None
    context = trace.get_current_span(_context(traceparent)).get_span_context()
    return context if context.is_valid else None


def _context(traceparent: str | None) -> Context | None:
    return None if traceparent is None else _propagator.extract({TRACEPARENT: traceparent})


def _ns(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND * 1000  # in whole numbers: a float is a quarter of a microsecond off
