"""`/tasks/{id}/video` and `/tasks/{id}/thumbnail`: the MP4 of a finished task, and a frame of it. HTTP only."""

from typing import Annotated, Any, Final

from litestar import Request, Response, get, head
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from contracts.tasks import TaskStatus, VideoFile
from gateway.boards.key_board import Caller
from gateway.http.access import Turn, needs
from gateway.http.lookup import find_ended
from gateway.http.openapi.files import FileHeadOperation, ThumbnailOperation, VideoOperation
from gateway.http.openapi.operations import problem_responses
from gateway.http.problems import ProblemError
from gateway.http.stored_files import StoredFile, file_answer, head_answer, link_answer, require_stored
from gateway.http.views import root_of, task_url
from gateway.services import Services

_Request = Request[Caller, Turn, State]
_Services = NamedDependency[Services]

_Redirect = Annotated[
    bool,
    QueryParameter(name="redirect", description="Whether the gateway may redirect to the object store."),
]

_CODES: Final = (
    "task_not_found",
    "video_not_ready",
    "video_failed",
    "video_expired",
    "precondition_failed",
    "range_not_satisfiable",
    "storage_unavailable",
    "transport_unavailable",
)
_PROBLEMS: Final = problem_responses(*_CODES)
_THUMBNAIL_PROBLEMS: Final = problem_responses(*_CODES, "no_thumbnail")


@get(
    "/tasks/{task_id:str}/video",
    summary="Download the video",
    tags=["tasks"],
    media_type="video/mp4",
    operation_class=VideoOperation,
    responses=_PROBLEMS,
    **needs("read"),
)
async def get_video(
    request: _Request, services: _Services, task_id: FromPath[str], redirect: _Redirect = True
) -> Response[Any]:
    """The MP4 of a finished task. `Range`, `If-Range`, `If-Match` and `If-None-Match` are supported.

    If the operator configured it, the answer is a 302 with a link to the object store. The link needs no key, and
    expires after a while. With `?redirect=false` the gateway sends the file itself."""
    file = await stored_video(request, services, task_id)
    link = await link_answer(request, services, file) if redirect else None
    return link or file_answer(request, services, file)


@head(
    "/tasks/{task_id:str}/video",
    summary="Size and hash of the video",
    tags=["tasks"],
    operation_class=FileHeadOperation,
    responses=_PROBLEMS,
    **needs("read"),
)
async def head_video(
    request: _Request, services: _Services, task_id: FromPath[str], redirect: _Redirect = True
) -> Response[None]:
    """The headers of the video without its bytes, whatever `redirect` says: a link works only for GET. `Range` has no
    effect here (RFC 9110)."""
    return head_answer(request, await stored_video(request, services, task_id))


@get(
    "/tasks/{task_id:str}/thumbnail",
    summary="A frame of the video",
    tags=["tasks"],
    media_type="image/webp",
    operation_class=ThumbnailOperation,
    responses=_THUMBNAIL_PROBLEMS,
    **needs("read"),
)
async def get_thumbnail(request: _Request, services: _Services, task_id: FromPath[str]) -> Response[Any]:
    """The middle frame of a finished task's video as WebP, 320 pixels at most on its longer side.

    It is kept for as long as the video. `links.thumbnail` is null where a task has none."""
    return file_answer(request, services, await stored_thumbnail(request, services, task_id))


@head("/tasks/{task_id:str}/thumbnail", include_in_schema=False, **needs("read"))
async def head_thumbnail(request: _Request, services: _Services, task_id: FromPath[str]) -> Response[None]:
    """The headers of the thumbnail without its bytes."""
    return head_answer(request, await stored_thumbnail(request, services, task_id))


async def stored_video(request: _Request, services: Services, task_id: str) -> StoredFile:
    """The video of a task, which is in the store. Raises ProblemError where there is none."""
    video = await _finished(request, services, task_id)
    file = StoredFile(
        path=video.path,
        bytes=video.bytes,
        sha256=video.sha256,
        media_type="video/mp4",
        name=f"{task_id}.mp4",
        what="video",
    )
    await require_stored(file, services)
    return file


async def stored_thumbnail(request: _Request, services: Services, task_id: str) -> StoredFile:
    """A frame of the video of a task, which is in the store. Raises ProblemError where there is none."""
    thumbnail = (await _finished(request, services, task_id)).thumbnail
    if thumbnail is None:
        raise ProblemError("no_thumbnail", "no frame of this video was kept; the video is at links.video of the task")
    file = StoredFile(
        path=thumbnail.path,
        bytes=thumbnail.bytes,
        sha256=thumbnail.sha256,
        media_type="image/webp",
        name=f"{task_id}.webp",
        what="thumbnail",
    )
    await require_stored(file, services)
    return file


async def _finished(request: _Request, services: Services, task_id: str) -> VideoFile:
    task = (await find_ended(services, request.user, task_id)).task
    if task.status is TaskStatus.FAILED:
        code = task.error.code if task.error else "failed"
        raise ProblemError("video_failed", f"the task failed ({code}); there is no video")
    if task.video is None:
        url = task_url(root_of(request), task_id)
        raise ProblemError("video_not_ready", f"the task is {task.status}; GET {url}?wait=60 waits for it")
    return task.video
