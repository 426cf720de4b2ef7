"""A task, and a page of tasks, as its caller sees them.

These views leave out what only the protocol needs (owner, lease, epoch, caller, routing inputs) and where files are
stored. Every key is always present; null means "not yet" or "does not apply".
"""

from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct

from contracts.memory import MemoryReading, SwapReceipt
from contracts.progress import eta_s
from contracts.tasks import (
    GenerationParameters,
    GenerationTask,
    Priority,
    TaskError,
    TaskStatus,
    TimelineEntry,
    VideoFile,
)
from contracts.webhooks import TaskWebhook


class QueuePlace(Struct, frozen=True, kw_only=True):
    """Where a task stands in its queue: *position* 1 is the next one that a worker takes.

    *expected_wait_s* follows from the measured service times; null before anything was measured. If it is longer than
    the rest of the wait limit, probably no worker will be free in time.
    """

    position: int
    expected_wait_s: float | None


class Progress(Struct, frozen=True, kw_only=True):
    """Inference steps finished, of how many, and in how many seconds the task will probably have ended.

    *eta_s* follows from the steps that were measured in this attempt, as of the moment of the answer. It is null before
    the first step, after the last one if decoding and encoding were never measured, and once the task has ended.
    """

    step: int
    steps: int
    eta_s: float | None

    @classmethod
    def of(cls, task: GenerationTask, now: datetime) -> "Progress | None":
        """The progress of *task* as callers see it at *now*; None before a worker began it."""
        done = task.progress
        if done is None:
            return None
        left_s = eta_s(done, now) if task.status is TaskStatus.PROCESSING else None
        return cls(step=done.step, steps=done.steps, eta_s=None if left_s is None else round(left_s, 1))


class VideoView(Struct, frozen=True, kw_only=True):
    """The finished MP4; `links.video` is where it is."""

    bytes: int
    sha256: str
    width: int
    height: int
    frames: int
    fps: int

    @classmethod
    def of(cls, video: VideoFile) -> "VideoView":
        """What callers see of *video*."""
        return cls(
            bytes=video.bytes,
            sha256=video.sha256,
            width=video.width,
            height=video.height,
            frames=video.frames,
            fps=video.fps,
        )


class ParameterWarning(Struct, frozen=True, kw_only=True):
    """A parameter whose value in the request was replaced, in the form of an entry of `errors` in a `422`.

    *code* is `fixed_value_replaced`. *expected* is the value that was used; *got* is the one that was sent, or words
    for a number too large to repeat.
    """

    pointer: str
    code: str
    message: str
    expected: float
    got: float | str


class TaskLinks(Struct, frozen=True, kw_only=True):
    """Paths of a task on the host that was called. *video* and *thumbnail* are null until the task is done; *thumbnail*
    stays null if no frame of the video was kept. *cancel* is null once the task has ended."""

    self_: str = msgspec.field(name="self")
    events: str
    video: str | None
    thumbnail: str | None
    cancel: str | None


class TaskView(Struct, frozen=True, kw_only=True):
    """One generation as its caller sees it.

    *route* is the dedicated warm lane or the degraded worker, where all models take turns on one card; *priority* is
    its class; *worker* is the one that holds or held the task; *attempt* counts the workers that began it. *warnings*
    lists the parameters whose values were replaced, if the enforcement of its model was `report`. *queue* is its place
    while it is pending. An event stream reports a task that moves up there; a long poll does not end for it. *swap*, on
    a task that ended on the degraded worker, is the proof that the card was empty before the model was loaded; null if
    the model was there already. *memory* is the host's reading after cleanup (FR-009). *webhook* is the address that
    the request asked to be notified, *labels* are the labels of the request. *keep_s* is for how many seconds after its
    end the request asked to keep it; null means `keep_s` of the settings. *trace_id* names its trace; null if tasks are
    not traced.
    """

    id: str
    status: TaskStatus
    model: str
    route: Literal["lane", "degraded"]
    priority: Priority
    worker: str | None
    attempt: int
    parameters: GenerationParameters
    warnings: tuple[ParameterWarning, ...]
    webhook: TaskWebhook | None
    labels: dict[str, str]
    keep_s: int | None
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

    @property
    def has_ended(self) -> bool:
        """Whether the task has ended and no longer changes."""
        return self.status in (TaskStatus.DONE, TaskStatus.FAILED)

    def at(self, event: str) -> datetime | None:
        """When *event* happened last; None if it is not in the timeline."""
        return next((entry.at for entry in reversed(self.timeline) if entry.event == event), None)


class TaskBatch(Struct, frozen=True, kw_only=True):
    """The tasks of a batch, in the order of its requests."""

    tasks: tuple[TaskView, ...]


class TaskPage(Struct, frozen=True, kw_only=True):
    """Tasks, newest first; *next_cursor* asks for the page after this one and is null on the last."""

    tasks: tuple[TaskView, ...]
    next_cursor: str | None
