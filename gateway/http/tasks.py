"""`/tasks/{id}`: look, wait, follow, cancel. HTTP only."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from litestar import Response, delete, get, head
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from contracts.api.tasks import TaskView
from gateway.boards.open_streams import TooManyStreams
from gateway.boards.snapshots import Snapshot
from gateway.http.access import needs
from gateway.http.answers import JsonAnswer
from gateway.http.conditions import conditions_of, require_to_change
from gateway.http.event_streams import KEEP_ALIVE_S, RETRY_AFTER_S, STILL_THERE, EventStream, beginning, event
from gateway.http.lookup import CallerRequest, age_of, awaited, etag_of, find, no_such_task, reachable, shown
from gateway.http.openapi.operations import (
    CancelOperation,
    EventsOperation,
    TaskOperation,
    problem_responses,
)
from gateway.http.preferences import MAX_WAIT_S, Preferences
from gateway.http.problems import ProblemError
from gateway.placing.cancelling import cancel
from gateway.services import Services

_Services = NamedDependency[Services]
_Wait = Annotated[
    float | None,
    QueryParameter(
        name="wait", ge=0, le=MAX_WAIT_S, description="Answer when the task has ended, or after this many seconds."
    ),
]


@get(
    "/tasks/{task_id:str}",
    summary="Look at a task, or wait for it",
    tags=["tasks"],
    operation_class=TaskOperation,
    responses=problem_responses(
        "invalid_query", "task_not_found", "precondition_failed", "too_many_waits", "transport_unavailable"
    ),
    **needs("read"),
)
async def get_task(
    request: CallerRequest, services: _Services, task_id: FromPath[str], wait: _Wait = None
) -> Response[TaskView]:
    """The task. With `?wait=S` or `Prefer: wait=S` the answer comes when the task has ended, or after S seconds at the
    latest. If `If-None-Match` names a revision, the answer comes on the next change, or as 304.

    While the gateway is cut off from the queue, it answers what it knew last, and `Age` gives the greatest age of
    that."""
    snapshot = await find(services, request.user, task_id)
    applied: dict[str, str] = {}
    if wait is None:
        preferred = Preferences.of(request.headers.getall("prefer", []), wait_max_s=MAX_WAIT_S)
        wait, applied = preferred.wait_s, Preferences(wait_s=preferred.wait_s).applied
    if wait:
        seen = conditions_of(request).revisions
        # the present revision if the client has seen it, else any that it has seen, which is not the present one
        seen_revision = snapshot.revision if snapshot.revision in seen else min(seen, default=None)
        try:
            snapshot = await awaited(request, services, snapshot, seen_revision=seen_revision, wait_s=wait)
        except TooManyStreams as error:
            detail = f"{error}; ask without wait, or follow the tasks with GET /tasks/events"
            raise ProblemError("too_many_waits", detail, retry_after_s=RETRY_AFTER_S) from error
    task = shown(request, services, snapshot.task)
    headers = applied | {"etag": etag_of(snapshot, task)}
    if not snapshot.task.status.is_terminal:
        headers |= age_of(services)
    return JsonAnswer(task, headers=headers)  # 304 where the client has it: `outgoing`


@get(
    "/tasks/{task_id:str}/events",
    summary="Follow a task",
    tags=["tasks"],
    media_type="text/event-stream",
    operation_class=EventsOperation,
    responses=problem_responses("task_not_found", "too_many_streams", "transport_unavailable"),
    **needs("read"),
)
async def follow_task(request: CallerRequest, services: _Services, task_id: FromPath[str]) -> Response[Any]:
    """Server-sent events: an event `task` with the task's JSON at once and at every change, until the task has ended.
    While the task waits, another place in the queue is a change too, sent once a second at most.

    The event's id is the revision. A client that reconnects with the id of the last event in `Last-Event-ID` gets 204,
    which stops a browser's `EventSource` from reconnecting. After 15 s without an event a comment is sent.
    """
    snapshot = await find(services, request.user, task_id)
    if _has_seen_the_end(request, snapshot):
        return Response(None, status_code=204)
    try:
        place = services.streams.take(request.user.name)
    except TooManyStreams as error:
        detail = f"{error}; close the streams of tasks that have ended, or wait with GET /tasks/{{id}}?wait=60"
        raise ProblemError("too_many_streams", detail, retry_after_s=RETRY_AFTER_S) from error
    return EventStream(_events(request, services, snapshot), place=place)


@head("/tasks/{task_id:str}/events", include_in_schema=False, **needs("read"))
async def head_follow_task(request: CallerRequest, services: _Services, task_id: FromPath[str]) -> Response[None]:
    """The headers of the stream, which is not opened."""
    snapshot = await find(services, request.user, task_id)
    if _has_seen_the_end(request, snapshot):
        return Response(None, status_code=204)
    return EventStream(())  # type: ignore[return-value]  # what Litestar wants declared


def _has_seen_the_end(request: CallerRequest, snapshot: Snapshot) -> bool:
    return snapshot.task.status.is_terminal and request.headers.get("last-event-id") == str(snapshot.revision)


async def _events(request: CallerRequest, services: Services, snapshot: Snapshot) -> AsyncIterator[bytes]:
    yield beginning()
    async for change in services.tasks.readers.changes(snapshot, idle_s=KEEP_ALIVE_S):
        if not services.keys.still_counts(request.user):
            return  # the key was revoked: nothing more is sent
        if change is None:
            yield STILL_THERE
        else:
            yield event("task", msgspec.json.encode(shown(request, services, change.task)), id=change.revision)


@delete(
    "/tasks/{task_id:str}",
    status_code=200,
    summary="Cancel a task",
    tags=["tasks"],
    operation_class=CancelOperation,
    responses=problem_responses("task_not_found", "precondition_failed", "transport_unavailable"),
    **needs("submit"),
)
async def cancel_task(request: CallerRequest, services: _Services, task_id: FromPath[str]) -> Response[TaskView]:
    """Cancels a task that waits or runs, and returns it. A task that has already ended is returned unchanged.

    With `If-Match`, nothing changes unless the task is still at a revision that one of the tags names."""
    await find(services, request.user, task_id)
    conditions = conditions_of(request)
    snapshot = await reachable(
        cancel(
            task_id,
            link=services.link,
            tasks=services.tasks,
            artifacts=services.artifacts,
            require=lambda revision: require_to_change(conditions, revision),
        )
    )
    if snapshot is None:
        raise no_such_task()
    task = shown(request, services, snapshot.task)
    return JsonAnswer(task, headers={"etag": etag_of(snapshot, task)})
