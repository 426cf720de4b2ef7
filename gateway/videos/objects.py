"""A task as `/v1/videos` shows it, and when a client should ask for it again. Pure."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal

from contracts.api.videos import ServedModel, VideoFailure, VideoJob
from contracts.settings import ModelEntry
from contracts.tasks import GenerationTask, TaskStatus

Status = Literal["queued", "in_progress", "completed", "failed"]
STATUSES: Final[Mapping[TaskStatus, Status]] = {
    TaskStatus.PENDING: "queued",
    TaskStatus.PROCESSING: "in_progress",
    TaskStatus.DONE: "completed",
    TaskStatus.FAILED: "failed",
}
# The client's own interval, also used before anything was measured.
POLL_UNKNOWN_MS: Final = 1_000
POLL_MIN_MS: Final = 250
POLL_MAX_MS: Final = 10_000
# The client learns its poll interval once, and then keeps it. A tenth of the expected time finds the end late by a
# tenth at most, with ten polls.
POLLS: Final = 10


def video_of(task: GenerationTask, *, keep_s: float) -> VideoJob:
    """*task* in the form of the API; its record is kept for *keep_s*, or for less where its request said so."""
    parameters = task.parameters
    is_done = task.status is TaskStatus.DONE
    ended_at = task.finished_at
    kept_s = int(keep_s) if task.keep_s is None else min(int(keep_s), task.keep_s)
    return VideoJob(
        id=task.id,
        created_at=_seconds(task.created_at),
        completed_at=_seconds(ended_at) if is_done and ended_at is not None else None,
        expires_at=_seconds(ended_at) + kept_s if ended_at is not None else None,
        status=STATUSES[task.status],
        progress=progress_of(task),
        model=task.model,
        prompt=parameters.prompt,
        seconds=seconds_of(parameters.num_frames, parameters.fps),
        size=f"{parameters.width}x{parameters.height}",
        error=None if task.error is None else VideoFailure(code=task.error.code.value, message=task.error.message),
    )


def progress_of(task: GenerationTask) -> int:
    """The share of its steps that are finished, in percent; 100 only once the video is there."""
    if task.status is TaskStatus.DONE:
        return 100
    if task.progress is None or task.progress.steps < 1:
        return 0
    return max(0, min(99, 100 * task.progress.step // task.progress.steps))


def seconds_of(num_frames: int, fps: int) -> str:
    """How long a video of *num_frames* lasts, from its first frame to its last: 65 at 16 a second are 4 seconds."""
    return f"{(num_frames - 1) / max(1, fps):.4f}".rstrip("0").rstrip(".")


def poll_after_ms(*, wait_s: float | None, run_s: float | None) -> int:
    """After how many milliseconds to ask again for a task that will probably wait for *wait_s* and then run for
    *run_s*; each is None if it is not known."""
    if wait_s is None or run_s is None:
        return POLL_UNKNOWN_MS
    return max(POLL_MIN_MS, min(POLL_MAX_MS, math.ceil(1_000 * (wait_s + run_s) / POLLS)))


def model_of(entry: ModelEntry) -> ServedModel:
    """A model by its name; requests may use its aliases too."""
    return ServedModel(id=entry.name)


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
