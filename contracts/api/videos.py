"""Answers of the routes below `/v1`, in the form that clients of OpenAI's video API read (ADR 0046)."""

from typing import Literal

from msgspec import Struct

from contracts.generation.errors import FieldError


class VideoFailure(Struct, frozen=True, kw_only=True):
    """Why there is no video: *code* is that of the task's error."""

    code: str
    message: str


class VideoJob(Struct, frozen=True, kw_only=True):
    """A task as `/v1/videos` shows it; `/tasks/{id}` shows the same one in full.

    Times are whole seconds since 1970. *expires_at* is when its record and its files are removed at the earliest.
    *progress* is a percentage, 100 only once the video is there. *seconds* is the time from the first frame to the
    last.
    """

    id: str
    object: Literal["video"] = "video"
    created_at: int
    completed_at: int | None
    expires_at: int | None
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    model: str
    prompt: str
    seconds: str
    size: str
    error: VideoFailure | None
    remixed_from_video_id: str | None = None


class VideoJobPage(Struct, frozen=True, kw_only=True):
    """A page of videos; *last_id* is what `after` of the next page names. Both ids are null on an empty page."""

    object: Literal["list"] = "list"
    data: tuple[VideoJob, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeletion(Struct, frozen=True, kw_only=True):
    """What became of a `DELETE`: *deleted* is false for a video that ended by itself just before it was cancelled."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool


class ServedModel(Struct, frozen=True, kw_only=True):
    """A model by the name that requests use. *created* is 0: the gateway does not record when a model was made."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "warmlane"


class ServedModels(Struct, frozen=True, kw_only=True):
    """Every model."""

    object: Literal["list"] = "list"
    data: tuple[ServedModel, ...]


class VideoApiError(Struct, frozen=True, kw_only=True):
    """A refusal or an error. *code* is that of the problem document that other routes answer, *type* its class as
    clients of OpenAI know them, *param* the first wrong field as the request named it. *errors* lists every wrong
    field, null where no field is wrong.
    """

    message: str
    type: str
    param: str | None
    code: str
    errors: list[FieldError] | None


class VideoApiErrorBody(Struct, frozen=True, kw_only=True):
    """The body of every error below `/v1`."""

    error: VideoApiError
