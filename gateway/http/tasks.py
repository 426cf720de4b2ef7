"""`/tasks`: look, wait, follow, cancel, download. HTTP only."""

import base64
import binascii
import math
import re
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from litestar import Request, Response, delete, get, head
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import ServerSentEventMessage, Stream

from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, VideoFile, encode_task
from contracts.topology import TASKS
from gateway.boards.key_board import Caller
from gateway.boards.task_board import Snapshot
from gateway.http.access import Turn, needs, unauthorized
from gateway.http.answers import JsonAnswer
from gateway.http.event_streams import RETRY_AFTER_S, CountedEvents, TooManyStreams
from gateway.http.openapi import (
    MAX_WAIT_S,
    CancelOperation,
    EventsOperation,
    TaskOperation,
    TasksOperation,
    VideoHeadOperation,
    VideoOperation,
    problem_responses,
)
from gateway.http.problems import ProblemError
from gateway.http.ranges import RangeNotSatisfiable, content_range, parse_range, range_applies
from gateway.http.views import TaskPage, TaskView, view
from gateway.placing.leftovers import remove_leftovers
from gateway.services import Services
from ops.artifacts import StorageFailed
from ops.nats.link import TransportUnavailable, WrongRevision
from ops.telemetry import metrics
from ops.telemetry.tracing import current_span, failed, link_to, of_task, span

PAGE_MAX: Final = 100
KEEP_ALIVE_S: Final = 15.0

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PREFER_WAIT: Final = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,6})"?\s*(?:[,;]|$)', re.IGNORECASE)

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
    responses=problem_responses("invalid_query", "task_not_found", "transport_unavailable"),
    **needs("read"),
)
async def get_task(
    request: _Request, services: _Services, task_id: FromPath[str], wait: _Wait = None
) -> Response[TaskView]:
    """The task. With `?wait=S` or `Prefer: wait=S` the answer comes when the task has ended, at the latest after S
    seconds; when `If-None-Match` names a revision, it comes on the next change, or as 304.

    While the gateway is cut off from the queue it answers what it knew last, and `Age` says how old that is at most."""
    snapshot = await find(services, request.user, task_id)
    headers: dict[str, str] = {}
    if wait is None:
        preferred = _PREFER_WAIT.search(request.headers.get("prefer", ""))
        if preferred is not None:
            wait = min(float(preferred[1]), MAX_WAIT_S)
            headers["preference-applied"] = f"wait={wait:g}"
    seen = request.headers.get("if-none-match")
    seen_revision = _revision(seen)
    if wait:
        waited = await services.tasks.wait(snapshot, seen_revision=seen_revision, timeout_s=wait)
        if not services.keys.still_counts(request.user):
            raise unauthorized(request)
        if waited is None:
            raise _no_such_task()
        snapshot = await _look_if_overdue(services, waited)
    headers["etag"] = f'"{snapshot.revision}"'
    if not snapshot.task.status.is_terminal:
        headers |= _age(services)
    if seen_revision == snapshot.revision:
        return Response(None, status_code=304, headers=headers)  # type: ignore[arg-type]  # a 304 has no body
    return JsonAnswer(_shown(services, snapshot.task), headers=headers)


@get(
    "/tasks",
    summary="List tasks, newest first",
    tags=["tasks"],
    operation_class=TasksOperation,
    responses=problem_responses("invalid_query", "transport_unavailable"),
    **needs("read"),
)
async def list_tasks(
    services: _Services,
    caller: _Caller,
    status: FromQuery[TaskStatus | None] = None,
    model: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(name="limit", ge=1, le=PAGE_MAX)] = 20,
    cursor: FromQuery[str | None] = None,
) -> Response[TaskPage]:
    """The tasks of the key's caller (every task for `admin`), newest first. `next_cursor` leads to the next page; it is
    null on the last one."""
    if model is not None:
        entry = services.catalog.resolve(model)
        if entry is None:
            known = ", ".join(sorted(services.catalog.models))
            raise ProblemError("invalid_query", f"model: no model has this name; there are {known}")
        model = entry.name
    found: list[GenerationTask] = []
    before = _decode_cursor(cursor)
    while True:
        wanted = limit + 1 - len(found)  # one more tells whether there is another page
        places = services.tasks.newest(status=status, model=model, caller=caller.sees_only, before=before, limit=wanted)
        for place in places:
            snapshot = await reachable(services.tasks.get(place[1]))
            if snapshot is not None:  # its record may have expired since
                found.append(snapshot.task)
        if len(found) > limit:
            last = found[limit - 1]
            return _page(services, found[:limit], _encode_cursor(last.created_at, last.id))
        if len(places) < wanted:
            return _page(services, found, None)
        before = places[-1]


def _page(services: Services, tasks: list[GenerationTask], next_cursor: str | None) -> Response[TaskPage]:
    page = TaskPage(tasks=tuple(_shown(services, task) for task in tasks), next_cursor=next_cursor)
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
    """Server-sent events: an event `task` with the task's JSON now and at every change, until it has ended.

    The event's id is the revision; a client that comes back with the last one in `Last-Event-ID` gets 204.
    """
    snapshot = await find(services, request.user, task_id)
    if snapshot.task.status.is_terminal and request.headers.get("last-event-id") == str(snapshot.revision):
        return Response(None, status_code=204)
    try:
        place = services.streams.take(request.user.name)
    except TooManyStreams as error:
        detail = f"{error}; close those of tasks that have ended, or wait with GET /tasks/{{id}}?wait=60"
        raise ProblemError("too_many_streams", detail, retry_after_s=RETRY_AFTER_S) from error
    events = _events(services, request.user, snapshot)
    return CountedEvents(events, place=place, headers={"Cache-Control": "no-store"})


async def _events(services: Services, caller: Caller, snapshot: Snapshot) -> AsyncIterator[ServerSentEventMessage]:
    async for change in services.tasks.changes(snapshot, idle_s=KEEP_ALIVE_S):
        if not services.keys.still_counts(caller):
            return  # its key was revoked: not a word more
        if change is None:
            yield ServerSentEventMessage(comment="still there")
        else:
            data = msgspec.json.encode(_shown(services, change.task)).decode()
            yield ServerSentEventMessage(data=data, event="task", id=str(change.revision))


@delete(
    "/tasks/{task_id:str}",
    status_code=200,
    summary="Cancel a task",
    tags=["tasks"],
    operation_class=CancelOperation,
    responses=problem_responses("task_not_found", "transport_unavailable"),
    **needs("submit"),
)
async def cancel_task(services: _Services, caller: _Caller, task_id: FromPath[str]) -> TaskView:
    """Cancels a task that waits or runs, and answers it. A task that has ended is answered as it is."""
    await find(services, caller, task_id)
    while True:
        snapshot = await reachable(services.tasks.read(task_id))
        if snapshot is None:
            raise _no_such_task()
        task = snapshot.task
        if task.status.is_terminal:
            return _shown(services, task)
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
        services.tasks.record(cancelled, revision, now)
        metrics.task_ended(cancelled)
        if task.status is TaskStatus.PENDING:
            await remove_leftovers(cancelled, link=services.link, artifacts=services.artifacts)
        return _shown(services, cancelled)


_VIDEO_PROBLEMS: Final = problem_responses(
    "task_not_found",
    "video_not_ready",
    "video_failed",
    "video_expired",
    "range_not_satisfiable",
    "storage_unavailable",
    "transport_unavailable",
)


@get(
    "/tasks/{task_id:str}/video",
    summary="Download the video",
    tags=["tasks"],
    media_type="video/mp4",
    operation_class=VideoOperation,
    responses=_VIDEO_PROBLEMS,
    **needs("read"),
)
async def get_video(request: _Request, services: _Services, task_id: FromPath[str]) -> Response[Any]:
    """The MP4 of a finished task; `Range`, `If-Range` and `If-None-Match` are understood."""
    video = await _video(services, request.user, task_id)
    headers = _video_headers(video, task_id)
    if _names(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(b"", status_code=304, headers=headers)
    wanted = request.headers.get("range") if range_applies(request.headers.get("if-range"), headers["ETag"]) else None
    try:
        part = parse_range(wanted, video.bytes)
    except RangeNotSatisfiable as error:
        raise ProblemError(
            "range_not_satisfiable",
            f"the video has {video.bytes} bytes",
            headers={"Content-Range": error.content_range},
        ) from error
    first, last = part or (0, video.bytes - 1)
    headers["Content-Length"] = str(last - first + 1)
    if part is not None:
        headers["Content-Range"] = content_range(first, last, video.bytes)
    return Stream(
        services.artifacts.read(video.path, first, last + 1),
        status_code=200 if part is None else 206,
        media_type="video/mp4",
        headers=headers,
    )


@head(
    "/tasks/{task_id:str}/video",
    summary="Size and hash of the video",
    tags=["tasks"],
    operation_class=VideoHeadOperation,
    responses=_VIDEO_PROBLEMS,
    **needs("read"),
)
async def head_video(services: _Services, caller: _Caller, task_id: FromPath[str]) -> Response[None]:
    """The headers of the video without its bytes."""
    video = await _video(services, caller, task_id)
    return Response(
        b"",  # type: ignore[arg-type]  # Litestar wants None declared, and cannot render None as this media type
        media_type="video/mp4",
        headers={**_video_headers(video, task_id), "Content-Length": str(video.bytes)},
    )


async def _video(services: Services, caller: Caller, task_id: str) -> VideoFile:
    task = (await find(services, caller, task_id)).task
    if task.status is TaskStatus.FAILED:
        code = task.error.code if task.error else "failed"
        raise ProblemError("video_failed", f"the task failed ({code}); there is no video")
    if task.video is None:
        raise ProblemError("video_not_ready", f"the task is {task.status}; GET /tasks/{task_id}?wait=60 waits for it")
    try:
        size = await services.artifacts.size(task.video.path)
    except StorageFailed as error:
        raise ProblemError("storage_unavailable", "the video cannot be read now; try again") from error
    if size != task.video.bytes:
        raise ProblemError("video_expired", "the video is gone from the store; submit the request again")
    return task.video


def _video_headers(video: VideoFile, task_id: str) -> dict[str, str]:
    return {
        "ETag": f'"{video.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=3600, immutable",
        "Content-Disposition": f'inline; filename="{task_id}.mp4"',
    }


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


def _shown(services: Services, task: GenerationTask) -> TaskView:
    return view(task, services.estimates.place(task, datetime.now(UTC)))


def _no_such_task() -> ProblemError:
    return ProblemError("task_not_found", "no task has this id, or it is older than what is kept")


def _revision(etag: str | None) -> int | None:
    text = (etag or "").strip().removeprefix("W/").strip('"')
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _names(header: str | None, etag: str) -> bool:
    names = [name.strip().removeprefix("W/") for name in (header or "").split(",")]
    return etag in names or "*" in names


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
