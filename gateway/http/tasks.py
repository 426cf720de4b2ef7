"""`/tasks`: look, wait, follow, cancel, download. HTTP only."""

import base64
import binascii
import math
import re
from collections.abc import AsyncIterator, Awaitable, Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from litestar import Request, Response, delete, get, head
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from contracts import lifecycle
from contracts.settings import Catalog
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, encode_task
from contracts.topology import TASKS
from gateway.boards.key_board import Caller
from gateway.boards.open_streams import TooManyStreams
from gateway.boards.task_board import Snapshot
from gateway.http.access import Turn, needs, unauthorized
from gateway.http.answers import JsonAnswer
from gateway.http.conditions import conditions_of, require_to_change
from gateway.http.event_streams import RETRY_AFTER_S, STILL_THERE, EventStream, beginning, event
from gateway.http.openapi.operations import (
    CancelOperation,
    EventsOperation,
    TaskOperation,
    TasksOperation,
    problem_responses,
)
from gateway.http.preferences import MAX_WAIT_S, Preferences
from gateway.http.problems import ProblemError
from gateway.http.views import TaskPage, TaskView, root_of, view
from gateway.placing.estimate import QueuePlace
from gateway.placing.leftovers import remove_leftovers
from gateway.services import Services
from ops.nats.link import TransportUnavailable, WrongRevision
from ops.telemetry import metrics
from ops.telemetry.tracing import current_span, failed, link_to, of_task, span

PAGE_MAX: Final = 100
KEEP_ALIVE_S: Final = 15.0

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

T = TypeVar("T")
_Request = Request[Caller, Turn, State]
_Services = NamedDependency[Services]
_Caller = NamedDependency[Caller]
_Wait = Annotated[
    float | None,
    QueryParameter(
        name="wait", ge=0, le=MAX_WAIT_S, description="Answer when the task has ended, or after so many seconds."
    ),
]


@get(
    "/tasks/{task_id:str}",
    summary="Look at a task, or wait for it",
    tags=["tasks"],
    operation_class=TaskOperation,
    responses=problem_responses("invalid_query", "task_not_found", "precondition_failed", "transport_unavailable"),
    **needs("read"),
)
async def get_task(
    request: _Request, services: _Services, task_id: FromPath[str], wait: _Wait = None
) -> Response[TaskView]:
    """The task. With `?wait=S` or `Prefer: wait=S` the answer comes when the task has ended, at the latest after S
    seconds; when `If-None-Match` names a revision, it comes on the next change, or as 304.

    While the gateway is cut off from the queue it answers what it knew last, and `Age` says how old that is at most."""
    snapshot = await find(services, request.user, task_id)
    applied: dict[str, str] = {}
    if wait is None:
        preferred = Preferences.of(request.headers.getall("prefer", []), wait_max_s=MAX_WAIT_S)
        wait, applied = preferred.wait_s, Preferences(wait_s=preferred.wait_s).applied
    if wait:
        seen = conditions_of(request).revisions
        # one of those that were seen, or any of them, which is not the present one
        seen_revision = snapshot.revision if snapshot.revision in seen else min(seen, default=None)
        snapshot = await awaited(request, services, snapshot, seen_revision=seen_revision, wait_s=wait)
    task = _shown(request, services, snapshot.task)
    headers = applied | {"etag": etag_of(snapshot, task.queue)}
    if not snapshot.task.status.is_terminal:
        headers |= _age(services)
    return JsonAnswer(task, headers=headers)  # 304 where the client has it: `outgoing`


async def awaited(
    request: _Request, services: Services, snapshot: Snapshot, *, seen_revision: int | None, wait_s: float
) -> Snapshot:
    """The task when it has ended, or is not at *seen_revision*, or as it is after *wait_s*.

    Raises ProblemError: task_not_found where its record is gone, and unauthorized where the key was revoked meanwhile.
    """
    waited = await services.tasks.wait(snapshot, seen_revision=seen_revision, timeout_s=wait_s)
    if not services.keys.still_counts(request.user):
        raise unauthorized(request)
    if waited is None:
        raise _no_such_task()
    return await _look_if_overdue(services, waited)


def etag_of(snapshot: Snapshot, place: QueuePlace | None) -> str:
    """The strong tag of a task's JSON, which changes with its revision, and with its *place* while it waits."""
    if place is None:
        return f'"{snapshot.revision}"'
    wait = "" if place.expected_wait_s is None else f"-{place.expected_wait_s:g}"
    return f'"{snapshot.revision}-{place.position}{wait}"'


@get(
    "/tasks",
    summary="List tasks, newest first",
    tags=["tasks"],
    operation_class=TasksOperation,
    responses=problem_responses("invalid_query", "transport_unavailable"),
    **needs("read"),
)
async def list_tasks(
    request: _Request,
    services: _Services,
    caller: _Caller,
    status: FromQuery[list[str] | None] = None,
    model: FromQuery[list[str] | None] = None,
    limit: Annotated[int, QueryParameter(name="limit", ge=1, le=PAGE_MAX)] = 20,
    cursor: FromQuery[str | None] = None,
) -> Response[TaskPage]:
    """The tasks of the key's caller (every task for `admin`), newest first. `next_cursor` leads to the next page; it is
    null on the last one. With several values of a filter, repeated or with commas, a task of any of them is listed."""
    statuses, models = _statuses(status), _models(model, services.catalog)
    found: list[GenerationTask] = []
    before = _decode_cursor(cursor)
    while True:
        wanted = limit + 1 - len(found)  # one more tells whether there is another page
        places = services.tasks.newest(
            statuses=statuses, models=models, caller=caller.sees_only, before=before, limit=wanted
        )
        for place in places:
            snapshot = await reachable(services.tasks.get(place[1]))
            if snapshot is not None:  # its record may have expired since
                found.append(snapshot.task)
        if len(found) > limit:
            last = found[limit - 1]
            return _page(request, services, found[:limit], _encode_cursor(last.created_at, last.id))
        if len(places) < wanted:
            return _page(request, services, found, None)
        before = places[-1]


def _statuses(values: list[str] | None) -> frozenset[TaskStatus] | None:
    if values is None:
        return None
    known = {status.value: status for status in TaskStatus}
    found = frozenset(known.get(value) for value in _each(values))
    if None in found or not found:
        raise ProblemError("invalid_query", f"status: expected {_or(known)}")
    return frozenset(status for status in found if status is not None)


def _models(values: list[str] | None, catalog: Catalog) -> frozenset[str] | None:
    if values is None:
        return None
    entries = [catalog.resolve(value) for value in _each(values)]
    if None in entries or not entries:
        known = _or(sorted(catalog.models))
        raise ProblemError("invalid_query", f"model: no model has this name; expected {known}, or an alias")
    return frozenset(entry.name for entry in entries if entry is not None)


def _each(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",")]


def _or(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _page(
    request: _Request, services: Services, tasks: list[GenerationTask], next_cursor: str | None
) -> Response[TaskPage]:
    page = TaskPage(tasks=tuple(_shown(request, services, task) for task in tasks), next_cursor=next_cursor)
    return Response(page, headers=_age(services))


def _age(services: Services) -> dict[str, str]:
    """What says how old an answer from memory is, while nothing newer can be had (RFC 9111)."""
    age_s = services.tasks.news_age_s()
    return {"age": str(math.ceil(age_s))} if age_s else {}


@get(
    "/tasks/{task_id:str}/events",
    summary="Follow a task",
    tags=["tasks"],
    media_type="text/event-stream",
    operation_class=EventsOperation,
    responses=problem_responses("task_not_found", "too_many_streams", "transport_unavailable"),
    **needs("read"),
)
async def follow_task(request: _Request, services: _Services, task_id: FromPath[str]) -> Response[Any]:
    """Server-sent events: an event `task` with the task's JSON now and at every change, until it has ended. While it
    waits, its place in the queue is such a change, told once a second at most.

    The event's id is the revision. A client that comes back with that of the end in `Last-Event-ID` gets 204, which
    tells a browser's `EventSource` to stay away. Between events a comment comes every 15 s.
    """
    snapshot = await find(services, request.user, task_id)
    if _has_seen_the_end(request, snapshot):
        return Response(None, status_code=204)
    try:
        place = services.streams.take(request.user.name)
    except TooManyStreams as error:
        detail = f"{error}; close those of tasks that have ended, or wait with GET /tasks/{{id}}?wait=60"
        raise ProblemError("too_many_streams", detail, retry_after_s=RETRY_AFTER_S) from error
    return EventStream(_events(request, services, snapshot), place=place)


@head("/tasks/{task_id:str}/events", include_in_schema=False, **needs("read"))
async def head_follow_task(request: _Request, services: _Services, task_id: FromPath[str]) -> Response[None]:
    """The headers of the stream, which is not opened."""
    snapshot = await find(services, request.user, task_id)
    if _has_seen_the_end(request, snapshot):
        return Response(None, status_code=204)
    return EventStream(())  # type: ignore[return-value]  # what Litestar wants declared


def _has_seen_the_end(request: _Request, snapshot: Snapshot) -> bool:
    return snapshot.task.status.is_terminal and request.headers.get("last-event-id") == str(snapshot.revision)


async def _events(request: _Request, services: Services, snapshot: Snapshot) -> AsyncIterator[bytes]:
    yield beginning()
    async for change in services.tasks.changes(snapshot, idle_s=KEEP_ALIVE_S):
        if not services.keys.still_counts(request.user):
            return  # its key was revoked: not a word more
        if change is None:
            yield STILL_THERE
        else:
            yield event("task", msgspec.json.encode(_shown(request, services, change.task)), id=change.revision)


@delete(
    "/tasks/{task_id:str}",
    status_code=200,
    summary="Cancel a task",
    tags=["tasks"],
    operation_class=CancelOperation,
    responses=problem_responses("task_not_found", "precondition_failed", "transport_unavailable"),
    **needs("submit"),
)
async def cancel_task(request: _Request, services: _Services, task_id: FromPath[str]) -> Response[TaskView]:
    """Cancels a task that waits or runs, and answers it. A task that has ended is answered as it is.

    With `If-Match`, nothing is done unless the task is still at the revision that one of its tags names."""
    await find(services, request.user, task_id)
    conditions = conditions_of(request)
    while True:
        snapshot = await reachable(services.tasks.read(task_id))
        if snapshot is None:
            raise _no_such_task()
        require_to_change(conditions, snapshot.revision)
        task = snapshot.task
        if task.status.is_terminal:
            return _ended(request, services, snapshot)
        now = datetime.now(UTC)
        cancelled = lifecycle.fail(task, code=FailureCode.CANCELLED, message="cancelled on request", now=now)
        current_span().set_attributes({"task.id": task.id, "model": task.model})
        link_to(task.traceparent)
        try:
            with span("cancel", of_task(task), traceparent=task.traceparent, unless=(WrongRevision,)) as current:
                revision = await reachable(
                    services.link.update(TASKS, task_id, encode_task(cancelled), revision=snapshot.revision)
                )
                failed(current, FailureCode.CANCELLED.value)
        except WrongRevision:
            continue  # it moved meanwhile: look again
        snapshot = services.tasks.record(cancelled, revision, now)
        metrics.task_ended(cancelled)
        if task.status is TaskStatus.PENDING:
            await remove_leftovers(cancelled, link=services.link, artifacts=services.artifacts)
        return _ended(request, services, snapshot)


def _ended(request: _Request, services: Services, snapshot: Snapshot) -> Response[TaskView]:
    return JsonAnswer(_shown(request, services, snapshot.task), headers={"etag": etag_of(snapshot, None)})


async def find(services: Services, caller: Caller, task_id: str) -> Snapshot:
    """The task, after what was due has been done where the server can be reached.

    Raises ProblemError: task_not_found, also for a task that *caller* may not see, for which nothing is done then; and
    transport_unavailable where nothing is known of it.
    """
    if not _ID.fullmatch(task_id):
        raise _no_such_task()
    snapshot = await reachable(services.tasks.get(task_id))
    if snapshot is None or not caller.sees(snapshot.task):
        raise _no_such_task()
    return await _look_if_overdue(services, snapshot)


async def _look_if_overdue(services: Services, snapshot: Snapshot) -> Snapshot:
    """Whoever reads an overdue pending record runs the timer's handler before answering (design §4).

    While the server is away it stays as it is: the first timer after the return ends it.
    """
    task = snapshot.task
    if task.status is not TaskStatus.PENDING or datetime.now(UTC) < task.deadline_at:
        return snapshot
    try:
        try:
            looked = await services.sweeper.look(task.id)
        except WrongRevision:
            looked = await services.tasks.read(task.id)
    except TransportUnavailable as error:
        if services.tasks.news_age_s():  # which the answer says
            return snapshot
        raise _unreachable() from error
    if looked is None:
        raise _no_such_task()
    return looked


async def reachable(call: Awaitable[T]) -> T:
    """What *call* returns; TransportUnavailable becomes the problem `transport_unavailable`."""
    try:
        return await call
    except TransportUnavailable as error:
        raise _unreachable() from error


def _unreachable() -> ProblemError:
    detail = "the record could not be read or written now; try again"
    return ProblemError("transport_unavailable", detail, retry_after_s=1.0)


def _shown(request: _Request, services: Services, task: GenerationTask) -> TaskView:
    return view(task, services.estimates.place(task, datetime.now(UTC)), root=root_of(request))


def _no_such_task() -> ProblemError:
    return ProblemError("task_not_found", "no task has this id, or it is older than what is kept")


def _encode_cursor(created_at: datetime, task_id: str) -> str:
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {task_id}".encode()).decode().rstrip("=")


def _decode_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        moment, _, task_id = text.partition(" ")
        created_at = datetime.fromisoformat(moment)
        if created_at.tzinfo is None or not _ID.fullmatch(task_id):
            raise ValueError
    except (binascii.Error, ValueError):
        raise ProblemError("invalid_query", "cursor: use next_cursor of the page before, unchanged") from None
    return created_at, task_id
