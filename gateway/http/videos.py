"""`/v1/videos`: what clients of OpenAI's video API call, for the same tasks as `/tasks` (ADR 0046). HTTP only."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Final

from litestar import Response, delete, get, head, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter

from contracts.api.videos import VideoDeletion, VideoJob, VideoJobPage
from contracts.progress import eta_s
from contracts.tasks import FailureCode, GenerationTask
from gateway.boards.key_board import Caller
from gateway.boards.open_streams import Place as OpenPlace
from gateway.boards.open_streams import TooManyStreams
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_index import Place
from gateway.http.access import needs, unauthorized
from gateway.http.answers import JsonAnswer
from gateway.http.event_streams import RETRY_AFTER_S
from gateway.http.listing import PAGE_MAX
from gateway.http.lookup import CallerRequest, age_of, awaited, find, no_such_task, reachable, until_gone
from gateway.http.openapi.videos import (
    VideoContentOperation,
    VideoCreateOperation,
    VideoListOperation,
    VideoRetrieveOperation,
    VideoSyncOperation,
    error_responses,
)
from gateway.http.preferences import MAX_WAIT_S, Preferences
from gateway.http.problems import ProblemError
from gateway.http.stored_files import StoredFile, file_answer, head_answer, link_answer, whole_answer
from gateway.http.submission import SUBMISSION_PROBLEMS
from gateway.http.video import stored_thumbnail, stored_video
from gateway.http.video_submission import read_video, submit_video
from gateway.http.views import root_of
from gateway.placing.cancelling import cancel
from gateway.placing.forgetting import forget
from gateway.services import Services
from gateway.videos.errors import NOT_AGAIN
from gateway.videos.objects import poll_after_ms, video_of
from ops.waiting import unless

_Services = NamedDependency[Services]
POLL_AFTER: Final = "openai-poll-after-ms"
ORDERS: Final = ("asc", "desc")
VARIANTS: Final = ("video", "thumbnail")
_CREATING: Final = ("invalid_query", "precondition_failed", "model_not_found", *SUBMISSION_PROBLEMS)


@post(
    "/v1/videos",
    status_code=200,
    summary="Create a video",
    tags=["videos"],
    operation_class=VideoCreateOperation,
    responses=error_responses(*_CREATING),
    **needs("submit", counts_late=True),
)
async def create_video(request: CallerRequest, services: _Services) -> Response[VideoJob]:
    """Queues a request, sent as a form or as JSON, and answers at once, like `POST /generate` with
    `Prefer: respond-async`.

    A task that no worker takes in time ends as `failed` with the code `queue_overloaded`. The id is that of the task:
    `/tasks/{id}` shows it too.
    """
    submission = await read_video(request, services)
    snapshot = await submit_video(request, services, submission, until_gone=None)
    return _shown(request, services, snapshot)


@post(
    "/v1/videos/sync",
    status_code=200,
    summary="Create a video and wait for its bytes",
    tags=["videos"],
    media_type="video/mp4",
    operation_class=VideoSyncOperation,
    responses=error_responses(*_CREATING, "too_many_waits", "video_failed", "video_expired", "generation_failed"),
    **needs("submit", counts_late=True),
)
async def create_video_sync(request: CallerRequest, services: _Services) -> Response[Any]:
    """Answers with the MP4 when it is made, however long that takes; `Location` is the video's path.

    A client that hangs up cancels the video, unless its request has an `Idempotency-Key`: it may come back with the
    same key.
    """
    submission = await read_video(request, services)
    with _wait_of(request, services).held():  # before the gateway accepts anything
        snapshot = await submit_video(request, services, submission, until_gone=partial(until_gone, request))
        ended = await unless(until_gone(request), _ended(request, services, snapshot))
    if ended is None:
        if submission.key is None and not services.stopping.is_set():  # the client hung up, and not this gateway
            await reachable(_cancelled(services, snapshot.task.id))
        raise ProblemError("malformed_body", "the caller hung up")
    task = ended.value.task
    if task.error is not None:
        raise _failed(services, task)
    file = await stored_video(request, services, task.id)
    return whole_answer(request, services, file, location=f"{root_of(request)}/v1/videos/{task.id}")


@get(
    "/v1/videos",
    summary="List videos",
    tags=["videos"],
    operation_class=VideoListOperation,
    responses=error_responses("invalid_query", "transport_unavailable"),
    **needs("read"),
)
async def list_videos(
    services: _Services,
    caller: NamedDependency[Caller],
    after: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(name="limit", ge=1, le=PAGE_MAX)] = 20,
    order: FromQuery[str] = "desc",
) -> Response[VideoJobPage]:
    """The videos of the key's caller (all videos for `admin`), newest first, or oldest first with `order=asc`. `after`
    is `last_id` of the previous page."""
    if order not in ORDERS:
        raise ProblemError("invalid_query", f"order: expected {' or '.join(ORDERS)}")
    place = None if after is None else _place_of(services, caller, after)
    tasks: list[GenerationTask] = []
    while len(tasks) <= limit:
        wanted = limit + 1 - len(tasks)  # one more shows whether there is another page
        places = services.tasks.index.newest(
            statuses=None,
            models=None,
            caller=caller.sees_only,
            before=place,
            limit=wanted,
            oldest_first=order == "asc",
        )
        for found in places:
            snapshot = await reachable(services.tasks.get(found[1]))
            if snapshot is not None:  # its record may have expired since
                tasks.append(snapshot.task)
        if len(places) < wanted:
            break
        place = places[-1]
    data = tuple(video_of(task, keep_s=services.keep_s) for task in tasks[:limit])
    page = VideoJobPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(tasks) > limit,
    )
    return JsonAnswer(page, headers=age_of(services))


@get(
    "/v1/videos/{video_id:str}",
    summary="Look at a video",
    tags=["videos"],
    operation_class=VideoRetrieveOperation,
    responses=error_responses("invalid_query", "task_not_found", "too_many_waits", "transport_unavailable"),
    **needs("read"),
)
async def get_video_job(request: CallerRequest, services: _Services, video_id: FromPath[str]) -> Response[VideoJob]:
    """The video. While it is being made, `openai-poll-after-ms` says after how long to ask again. With `Prefer: wait=S`
    the answer comes when the task has ended, or after S seconds at the latest."""
    snapshot = await find(services, request.user, video_id)
    preferred = Preferences.of(request.headers.getall("prefer", []), wait_max_s=MAX_WAIT_S)
    if preferred.wait_s:
        try:
            snapshot = await awaited(request, services, snapshot, seen_revision=None, wait_s=preferred.wait_s)
        except TooManyStreams as error:
            raise _too_many_waits(error) from error
    return _shown(request, services, snapshot, applied=Preferences(wait_s=preferred.wait_s).applied)


@delete(
    "/v1/videos/{video_id:str}",
    status_code=200,
    summary="Cancel a video, or forget it",
    tags=["videos"],
    operation_class=VideoListOperation,
    responses=error_responses("task_not_found", "transport_unavailable"),
    **needs("submit"),
)
async def delete_video(request: CallerRequest, services: _Services, video_id: FromPath[str]) -> Response[VideoDeletion]:
    """Cancels a video that waits or is being made. A video that has ended is removed for good, with its files, like
    `DELETE /tasks/{id}/record`. `deleted` is false if the video ended otherwise just before it was cancelled."""
    task = (await find(services, request.user, video_id)).task
    if task.status.is_terminal:
        is_deleted = await reachable(_forgotten(services, task.id))
        if not is_deleted:
            raise no_such_task()
    else:
        ended = await reachable(_cancelled(services, task.id))
        if ended is None:
            raise no_such_task()
        is_deleted = ended.task.error is not None and ended.task.error.code is FailureCode.CANCELLED
    return JsonAnswer(VideoDeletion(id=task.id, deleted=is_deleted), headers={})


_CONTENT: Final = error_responses(
    "invalid_query",
    "task_not_found",
    "video_not_ready",
    "video_failed",
    "video_expired",
    "no_thumbnail",
    "precondition_failed",
    "range_not_satisfiable",
    "storage_unavailable",
    "transport_unavailable",
)


@get(
    "/v1/videos/{video_id:str}/content",
    summary="Download a video, or a frame of it",
    tags=["videos"],
    media_type="video/mp4",
    operation_class=VideoContentOperation,
    responses=_CONTENT,
    **needs("read"),
)
async def get_video_content(
    request: CallerRequest, services: _Services, video_id: FromPath[str], variant: FromQuery[str] = "video"
) -> Response[Any]:
    """The MP4, or with `variant=thumbnail` its middle frame as WebP. `Range` and conditions are supported. If the
    operator configured it, the answer is a 302 with a link to the MP4, which clients follow."""
    file = await _content(request, services, video_id, variant)
    link = await link_answer(request, services, file) if variant == "video" else None
    return link or file_answer(request, services, file)


@head("/v1/videos/{video_id:str}/content", include_in_schema=False, **needs("read"))
async def head_video_content(
    request: CallerRequest, services: _Services, video_id: FromPath[str], variant: FromQuery[str] = "video"
) -> Response[None]:
    """The headers of the content without its bytes."""
    return head_answer(request, await _content(request, services, video_id, variant))


@post(
    [
        "/v1/videos/{video_id:str}/remix",
        "/v1/videos/edits",
        "/v1/videos/extensions",
        "/v1/videos/characters",
    ],
    include_in_schema=False,
    **needs("submit"),
)
async def make_from_a_video(request: CallerRequest) -> None:
    """Says in words what this server does not do: otherwise a client would read that there is nothing at the path."""
    what = request.scope["path"].rpartition("/")[2]
    raise ProblemError(
        "not_found",
        f"{what}: videos are made of a text, or of a text and an image, and not of other videos; POST /v1/videos makes "
        "one",
    )


@get("/v1/videos/characters/{character_id:str}", include_in_schema=False, **needs("read"))
async def get_character(character_id: FromPath[str]) -> None:
    """As `make_from_a_video`."""
    raise ProblemError("not_found", f"{character_id[:64]!a}: characters are not supported; describe them in the prompt")


ROUTES: Final[Sequence[HTTPRouteHandler]] = (
    create_video,
    create_video_sync,
    list_videos,
    get_video_job,
    delete_video,
    get_video_content,
    head_video_content,
    make_from_a_video,
    get_character,
)


def _shown(
    request: CallerRequest, services: Services, snapshot: Snapshot, *, applied: dict[str, str] | None = None
) -> Response[VideoJob]:
    task = snapshot.task
    headers = dict(applied or {})
    if not task.status.is_terminal:
        headers |= age_of(services) | {POLL_AFTER: str(_poll_after_ms(services, task))}
    return JsonAnswer(video_of(task, keep_s=services.keep_s), headers=headers)


def _poll_after_ms(services: Services, task: GenerationTask) -> int:
    now = datetime.now(UTC)
    place = services.estimates.place(task, now)
    if place is None:
        left_s = eta_s(task.progress, now)  # from the steps of this very run, if any were measured
        return poll_after_ms(wait_s=0.0, run_s=services.estimates.left_s(task, now) if left_s is None else left_s)
    run_s = services.tasks.work_queues.service_s(task.route, task.model)
    return poll_after_ms(wait_s=place.expected_wait_s, run_s=run_s)


def _place_of(services: Services, caller: Caller, video_id: str) -> Place:
    row = services.tasks.index.get(video_id)
    if row is None or caller.sees_only not in (None, row.caller):
        raise ProblemError("invalid_query", "after: no video has this id, or not any more; use last_id of a page")
    return row.created_at, row.id


async def _cancelled(services: Services, task_id: str) -> Snapshot | None:
    return await cancel(
        task_id, link=services.link, tasks=services.tasks, artifacts=services.artifacts, require=lambda _: None
    )


async def _forgotten(services: Services, task_id: str) -> bool:
    was_there = await forget(
        task_id,
        link=services.link,
        tasks=services.tasks,
        artifacts=services.artifacts,
        deliveries=services.webhooks.deliveries,
        require=lambda _: None,
    )
    services.texts.forget({task_id})
    return was_there


async def _ended(request: CallerRequest, services: Services, snapshot: Snapshot) -> Snapshot:
    while not snapshot.task.status.is_terminal:
        if services.stopping.is_set():
            task_id = snapshot.task.id
            raise ProblemError(
                "transport_unavailable",
                f"this gateway is stopping; the video will still be made: GET {root_of(request)}/v1/videos/{task_id}",
                headers=NOT_AGAIN,
            )
        waited = await services.tasks.readers.wait(snapshot, seen_revision=None, timeout_s=MAX_WAIT_S)
        if not services.keys.still_counts(request.user):
            raise unauthorized(request)
        if waited is None:
            raise no_such_task()
        # `find` does what is due where the task is overdue by now
        snapshot = waited if waited.task.status.is_terminal else await find(services, request.user, waited.task.id)
    return snapshot


def _wait_of(request: CallerRequest, services: Services) -> OpenPlace:
    try:
        return services.waits.take(request.user.name)
    except TooManyStreams as error:
        raise _too_many_waits(error) from error


def _too_many_waits(error: TooManyStreams) -> ProblemError:
    detail = f"{error}; ask without waiting: POST /v1/videos, then GET /v1/videos/{{id}}"
    return ProblemError("too_many_waits", detail, retry_after_s=RETRY_AFTER_S)


def _failed(services: Services, task: GenerationTask) -> ProblemError:
    """The problem for a client that waited for *task*, which failed."""
    assert task.error is not None  # a task that failed
    code, message = task.error.code, task.error.message
    if code is FailureCode.QUEUE_OVERLOADED:
        retry_after_s = services.estimates.retry_after_s(task.model, datetime.now(UTC), priority=task.priority)
        return ProblemError("queue_overloaded", message, retry_after_s=retry_after_s)
    if code is FailureCode.CANCELLED:
        return ProblemError("video_failed", f"the task failed ({code}); there is no video")
    return ProblemError("generation_failed", f"the task failed ({code}): {message}")


async def _content(request: CallerRequest, services: Services, video_id: str, variant: str) -> StoredFile:
    if variant not in VARIANTS:
        raise ProblemError("invalid_query", f"variant: expected {' or '.join(VARIANTS)}")
    stored = stored_video if variant == "video" else stored_thumbnail
    return await stored(request, services, video_id)
