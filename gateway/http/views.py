"""What clients see: the public JSON of a task, of a page of tasks and of the settings.

A view leaves out what only the protocol needs (owner, lease, epoch, caller, routing inputs) and where files are stored.
Every key is always present; null means "not yet" or "does not apply".
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal

import msgspec
from litestar.connection import ASGIConnection
from msgspec import Struct

from contracts.settings import Catalog, Enforcement, Presence, VideoGenerationConstraints
from contracts.tasks import (
    GenerationParameters,
    GenerationTask,
    MemoryReading,
    Progress,
    ReplacedParameter,
    SwapReceipt,
    TaskError,
    TaskStatus,
    TimelineEntry,
)
from gateway.placing.estimate import QueuePlace


class VideoView(Struct, frozen=True, kw_only=True):
    """The finished MP4; `links.video` is where it is."""

    bytes: int
    sha256: str
    width: int
    height: int
    frames: int
    fps: int


class ParameterWarning(Struct, frozen=True, kw_only=True):
    """A parameter that the request named and did not get, in the form of an entry of `errors` in a `422`.

    *code* is `fixed_value_replaced`. *expected* is the value that was used; *got* is the one that was sent, or words
    for a number too large to repeat.
    """

    pointer: str
    code: str
    message: str
    expected: float
    got: float | str


class TaskLinks(Struct, frozen=True, kw_only=True):
    """Where to go from a task: paths on the host that was called. *video* is null until it is done, *cancel* once it
    ended."""

    self_: str = msgspec.field(name="self")
    events: str
    video: str | None
    cancel: str | None


class TaskView(Struct, frozen=True, kw_only=True):
    """One generation as its caller sees it.

    *route* is the dedicated warm lane or the degraded worker, where all models take turns on one card; *worker* is the
    one that holds or held the task; *attempt* counts the workers that began it. *warnings* lists the parameters that
    the request named otherwise, where the enforcement of its model was `report`. *queue* is where it stands, as long as
    it is pending; a task that moves up there is a change for event streams, and not for clients that wait. *swap*, on a
    task that ended on the degraded worker, is the proof that the card was empty before the model was loaded; null
    if the model was there already. *memory* is the host's reading after cleanup (FR-009). *trace_id* names its trace,
    null where tasks are not traced.
    """

    id: str
    status: TaskStatus
    model: str
    route: Literal["lane", "degraded"]
    worker: str | None
    attempt: int
    parameters: GenerationParameters
    warnings: tuple[ParameterWarning, ...]
    created_at: datetime
    queued_at: datetime
    claimed_at: datetime | None
    finished_at: datetime | None
    queue: QueuePlace | None
    progress: Progress | None
    error: TaskError | None
    video: VideoView | None
    swap: SwapReceipt | None
    memory: MemoryReading | None
    timeline: tuple[TimelineEntry, ...]
    trace_id: str | None
    links: TaskLinks


class TaskPage(Struct, frozen=True, kw_only=True):
    """Tasks, newest first; *next_cursor* asks for the page after this one and is null on the last."""

    tasks: tuple[TaskView, ...]
    next_cursor: str | None


# As model hubs and libraries call what a model does.
Mode = Literal["text-to-video", "image-to-video"]
MODES: Final[Mapping[Presence, tuple[Mode, ...]]] = {
    "unsupported": ("text-to-video",),
    "optional": ("text-to-video", "image-to-video"),
    "required": ("image-to-video",),
}


class ModelView(Struct, frozen=True, kw_only=True):
    """A model and what a request for it is checked against.

    *enforcement* says what becomes of a number other than a fixed one: `reject`, a `422`, or `report`, the fixed one is
    used and the task says so in `warnings`. *modes* says what the model makes a video from, in this profile: a prompt,
    a prompt and an image, or either; `constraints.image` has the limits of the image.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    enforcement: Enforcement
    modes: tuple[Mode, ...]
    constraints: VideoGenerationConstraints


class SettingsView(Struct, frozen=True, kw_only=True):
    """What a form needs: the models of the running profile with every limit, default and fixed value.

    *wait_limit_s* is the longest that a request waits for a worker (FR-017, FR-021 c).
    """

    profile: str
    wait_limit_s: float
    models: tuple[ModelView, ...]


def root_of(request: ASGIConnection[Any, Any, Any, Any]) -> str:
    """What stands before every path that the caller is told: empty, or as in `/warmlane` (`server/proxies.py`)."""
    return request.scope["root_path"]


def task_url(root: str, task_id: str) -> str:
    """The path of a task: `Location` of a 202, and the base of its links."""
    return f"{root}/tasks/{task_id}"


def view(task: GenerationTask, place: QueuePlace | None, *, root: str = "") -> TaskView:
    """*task*, which stands in its queue at *place* (`Estimates.place`), as its caller may see it under *root*."""
    url = task_url(root, task.id)
    video = task.video
    return TaskView(
        id=task.id,
        status=task.status,
        model=task.model,
        route=task.route,
        worker=task.worker,
        attempt=task.attempt,
        parameters=task.parameters,
        warnings=tuple(_warning(each) for each in task.replaced),
        created_at=task.created_at,
        queued_at=task.queued_at,
        claimed_at=task.claimed_at,
        finished_at=task.finished_at,
        queue=place,
        progress=task.progress,
        error=task.error,
        video=None
        if video is None
        else VideoView(
            bytes=video.bytes,
            sha256=video.sha256,
            width=video.width,
            height=video.height,
            frames=video.frames,
            fps=video.fps,
        ),
        swap=task.swap,
        memory=task.memory,
        timeline=task.timeline,
        trace_id=task.trace_id,
        links=TaskLinks(
            self_=url,
            events=f"{url}/events",
            video=f"{url}/video" if task.status is TaskStatus.DONE else None,
            cancel=None if task.status.is_terminal else url,
        ),
    )


def _warning(replaced: ReplacedParameter) -> ParameterWarning:
    return ParameterWarning(
        pointer=f"/{replaced.field}",
        code="fixed_value_replaced",
        message=f"{replaced.field}: expected {replaced.used}, got {replaced.got}; {replaced.used} was used",
        expected=replaced.used,
        got=replaced.got,
    )


def settings_view(catalog: Catalog) -> SettingsView:
    """The body of `GET /settings`, models by name."""
    return SettingsView(
        profile=catalog.profile,
        wait_limit_s=catalog.windows.wait_limit_s,
        models=tuple(
            ModelView(
                name=entry.name,
                title=entry.title,
                aliases=entry.aliases,
                enforcement=entry.enforcement,
                modes=MODES[entry.constraints.image.presence],
                constraints=entry.constraints,
            )
            for _, entry in sorted(catalog.models.items())
        ),
    )
