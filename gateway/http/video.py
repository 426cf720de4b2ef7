"""`/tasks/{id}/video`: the MP4 of a finished task. HTTP only."""

from typing import Any, Final

from litestar import Request, Response, get, head
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import Stream

from contracts.tasks import TaskStatus, VideoFile
from gateway.boards.key_board import Caller
from gateway.http.access import Turn, needs
from gateway.http.conditions import conditions_of, precondition_failed, tag_of, to_read
from gateway.http.lookup import find
from gateway.http.openapi.operations import VideoHeadOperation, VideoOperation, problem_responses
from gateway.http.problems import ProblemError
from gateway.http.ranges import RangeNotSatisfiable, content_range, parse_range, range_applies
from gateway.http.views import root_of, task_url
from gateway.services import Services
from ops.artifacts import StorageFailed

_Request = Request[Caller, Turn, State]
_Services = NamedDependency[Services]

_PROBLEMS: Final = problem_responses(
    "task_not_found",
    "video_not_ready",
    "video_failed",
    "video_expired",
    "precondition_failed",
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
    responses=_PROBLEMS,
    **needs("read"),
)
async def get_video(request: _Request, services: _Services, task_id: FromPath[str]) -> Response[Any]:
    """The MP4 of a finished task; `Range`, `If-Range`, `If-Match` and `If-None-Match` are understood."""
    video = await _video(request, services, task_id)
    headers = _headers(video, task_id)
    if _is_known(request, headers):
        return _not_modified(headers)
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
    responses=_PROBLEMS,
    **needs("read"),
)
async def head_video(request: _Request, services: _Services, task_id: FromPath[str]) -> Response[None]:
    """The headers of the video without its bytes. `Range` means nothing here (RFC 9110)."""
    video = await _video(request, services, task_id)
    headers = _headers(video, task_id)
    if _is_known(request, headers):
        return _not_modified(headers)
    return Response(
        b"",  # type: ignore[arg-type]  # Litestar wants None declared, and cannot render None as this media type
        media_type="video/mp4",
        headers={**headers, "Content-Length": str(video.bytes)},
    )


def _is_known(request: _Request, headers: dict[str, str]) -> bool:
    """Whether the client has the video already. Raises the problem `precondition_failed`."""
    verdict = to_read(conditions_of(request), tag_of(headers["ETag"]))
    if verdict == "failed":
        raise precondition_failed(headers["ETag"])
    return verdict == "not modified"


def _not_modified(headers: dict[str, str]) -> Response[Any]:
    return Response(b"", status_code=304, headers=headers)


async def _video(request: _Request, services: Services, task_id: str) -> VideoFile:
    task = (await find(services, request.user, task_id)).task
    if task.status is TaskStatus.FAILED:
        code = task.error.code if task.error else "failed"
        raise ProblemError("video_failed", f"the task failed ({code}); there is no video")
    if task.video is None:
        url = task_url(root_of(request), task_id)
        raise ProblemError("video_not_ready", f"the task is {task.status}; GET {url}?wait=60 waits for it")
    try:
        size = await services.artifacts.size(task.video.path)
    except StorageFailed as error:
        raise ProblemError("storage_unavailable", "the video cannot be read now; try again") from error
    if size != task.video.bytes:
        raise ProblemError("video_expired", "the video is gone from the store; submit the request again")
    return task.video


def _headers(video: VideoFile, task_id: str) -> dict[str, str]:
    return {
        "ETag": f'"{video.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=3600, immutable",
        "Content-Disposition": f'inline; filename="{task_id}.mp4"',
    }
