"""Requests to a gateway and its answers. Answers are read leniently: fields that a newer gateway adds are kept in
`Task.document`, and a value from a list may be any word."""

import base64
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

_ENDED: Final = ("done", "failed")
_MEDIA_TYPES: Final = (
    (b"\x89PNG\r\n\x1a\n", 0, "image/png"),
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"WEBP", 8, "image/webp"),
)


class VideoRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request for one video. The model chooses the fields that are left out (`GET /settings`).

    *image* is a data URI, which `image_uri` makes, or names an image elsewhere, as `{"url": …}` or `{"ref": …}`.
    *keep_s* is for how many seconds after its end the task is kept. *more* holds fields of a later version.
    """

    model: str
    prompt: str
    negative_prompt: str | None = None
    image: str | Mapping[str, str] | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    seed: int | None = None
    steps: int | None = None
    cfg: float | None = None
    priority: str | None = None
    webhook: Mapping[str, Any] | None = None
    labels: Mapping[str, str] | None = None
    keep_s: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON of `POST /generate`: only what was given."""
        given: dict[str, Any] = msgspec.to_builtins(self)
        more: dict[str, Any] = given.pop("more", {})
        return {**given, **more}


def image_uri(image: Path | bytes) -> str:
    """*image*, a file or its content, as a request carries it.

    Raises ValueError for what is neither PNG, JPEG nor WebP; OSError for a file that cannot be read.
    """
    content = image if isinstance(image, bytes) else image.read_bytes()
    for magic, at, media_type in _MEDIA_TYPES:
        if content[at : at + len(magic)] == magic:
            return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    raise ValueError("the image is neither PNG, JPEG nor WebP")


class PlaceInQueue(Struct, frozen=True, kw_only=True):
    """*position* 1 is next. *expected_wait_s* is None before anything was measured."""

    position: int
    expected_wait_s: float | None = None


class StepsMade(Struct, frozen=True, kw_only=True):
    """How far a task is: *step* of *steps*. *eta_s* is in how many seconds it will probably have ended; None if that is
    not known, and once it has."""

    step: int
    steps: int
    eta_s: float | None = None


class WhyFailed(Struct, frozen=True, kw_only=True):
    """Why a task failed; programs switch on *code*, as in `queue_overloaded`."""

    code: str
    message: str = ""


class VideoMade(Struct, frozen=True, kw_only=True):
    """The finished MP4."""

    bytes: int
    sha256: str
    width: int = 0
    height: int = 0
    frames: int = 0
    fps: int = 0


class Task(Struct, frozen=True, kw_only=True):
    """One generation, as the gateway knew it when it answered.

    *status* is `pending`, `processing`, `done` or `failed`; *queue* is there while it waits, *progress* while it runs,
    *video* when it is done, *error* when it failed. *document* is the whole answer; *revision* is its tag (`ETag`).
    """

    id: str
    status: str
    model: str
    created_at: datetime
    queued_at: datetime
    route: str = ""
    priority: str = "standard"
    worker: str | None = None
    attempt: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[dict[str, Any], ...] = ()
    webhook: dict[str, Any] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    keep_s: int | None = None
    claimed_at: datetime | None = None
    finished_at: datetime | None = None
    queue: PlaceInQueue | None = None
    progress: StepsMade | None = None
    error: WhyFailed | None = None
    video: VideoMade | None = None
    swap: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    timeline: tuple[dict[str, Any], ...] = ()
    trace_id: str | None = None
    links: dict[str, str | None] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    revision: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the task has ended and no longer changes."""
        return self.status in _ENDED

    @classmethod
    def of(cls, document: dict[str, Any], revision: str = "") -> "Task":
        """The task in *document*. Raises msgspec.ValidationError for anything else."""
        task = msgspec.convert(document, cls)
        return msgspec.structs.replace(task, document=document, revision=revision)


class TaskList(Struct, frozen=True, kw_only=True):
    """A page of tasks, newest first. *next_cursor* asks for the page after it, and is None on the last."""

    tasks: tuple[Task, ...]
    next_cursor: str | None = None
