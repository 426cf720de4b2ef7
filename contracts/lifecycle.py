"""The task state machine: one table. Pure; `now` is an argument; an illegal move raises and changes nothing."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from msgspec.structs import replace

from contracts.tasks import (
    TIMELINE_MAX,
    FailureCode,
    GenerationTask,
    MemoryReading,
    Progress,
    RoutingDecision,
    TaskError,
    TaskStatus,
    TimelineEntry,
    VideoFile,
)


class TaskEvent(StrEnum):
    """What can happen to a task."""

    CLAIM = "claim"
    REROUTE = "reroute"
    REQUEUE = "requeue"
    FINISH = "finish"
    FAIL = "fail"


TRANSITIONS: Final[dict[tuple[TaskStatus, TaskEvent], TaskStatus]] = {
    (TaskStatus.PENDING, TaskEvent.CLAIM): TaskStatus.PROCESSING,
    (TaskStatus.PENDING, TaskEvent.REROUTE): TaskStatus.PENDING,
    (TaskStatus.PENDING, TaskEvent.FAIL): TaskStatus.FAILED,
    (TaskStatus.PROCESSING, TaskEvent.REQUEUE): TaskStatus.PENDING,
    (TaskStatus.PROCESSING, TaskEvent.FINISH): TaskStatus.DONE,
    (TaskStatus.PROCESSING, TaskEvent.FAIL): TaskStatus.FAILED,
}


class IllegalTransition(ValueError):
    """The table has no such move. The task is unchanged."""


def with_event(task: GenerationTask, event: str, now: datetime, detail: str = "") -> GenerationTask:
    """*task* with one more line in its timeline; the oldest lines after the first make room."""
    line = TimelineEntry(at=now, event=event, detail=detail)
    kept = task.timeline
    if len(kept) >= TIMELINE_MAX:
        kept = (kept[0], *kept[2:])
    return replace(task, timeline=(*kept, line))


def _move(task: GenerationTask, event: TaskEvent, now: datetime, detail: str, **changes: Any) -> GenerationTask:
    status = TRANSITIONS.get((task.status, event))
    if status is None:
        raise IllegalTransition(f"task {task.id} is {task.status}: it cannot {event}")
    return with_event(replace(task, status=status, **changes), event.value, now, detail)


def claim(task: GenerationTask, *, owner: str, worker: str, lease_s: float, now: datetime) -> GenerationTask:
    """pending → processing, owned by *owner* for *lease_s*; one more attempt."""
    return _move(
        task,
        TaskEvent.CLAIM,
        now,
        f"attempt {task.attempt + 1} by {worker}",
        attempt=task.attempt + 1,
        owner=owner,
        worker=worker,
        claimed_at=now,
        lease_expires_at=now + timedelta(seconds=lease_s),
        progress=Progress(step=0, steps=task.parameters.steps),
    )


def renew(task: GenerationTask, *, progress: Progress, lease_s: float, now: datetime) -> GenerationTask:
    """The owner is alive: a later lease and the progress so far. The status does not change.

    Raises IllegalTransition when the task is not processing.
    """
    if task.status is not TaskStatus.PROCESSING:
        raise IllegalTransition(f"task {task.id} is {task.status}: its lease cannot be renewed")
    return replace(task, progress=progress, lease_expires_at=now + timedelta(seconds=lease_s))


def release_lease(task: GenerationTask, *, reason: str, now: datetime) -> GenerationTask:
    """The owner cannot go on: the lease ends now, and the sweeper decides what follows."""
    if task.status is not TaskStatus.PROCESSING:
        raise IllegalTransition(f"task {task.id} is {task.status}: it has no lease")
    return with_event(replace(task, lease_expires_at=now), "lease_released", now, reason)


def requeue(task: GenerationTask, *, decision: RoutingDecision, wait_s: float, now: datetime) -> GenerationTask:
    """processing → pending at the next epoch: the worker was lost and attempts are left."""
    return _move(
        task,
        TaskEvent.REQUEUE,
        now,
        f"{task.worker} was lost in attempt {task.attempt}",
        epoch=task.epoch + 1,
        owner=None,
        decision=decision,
        queued_at=now,
        deadline_at=now + timedelta(seconds=wait_s),
        lease_expires_at=None,
        progress=None,
    )


def finish(task: GenerationTask, *, video: VideoFile, memory: MemoryReading | None, now: datetime) -> GenerationTask:
    """processing → done. The stored record is what publishes *video*."""
    return _move(
        task,
        TaskEvent.FINISH,
        now,
        "",
        video=video,
        memory=memory,
        finished_at=now,
        lease_expires_at=None,
        progress=Progress(step=task.parameters.steps, steps=task.parameters.steps),
    )


def fail(
    task: GenerationTask, *, code: FailureCode, message: str, now: datetime, memory: MemoryReading | None = None
) -> GenerationTask:
    """pending or processing → failed, with *code*."""
    return _move(
        task,
        TaskEvent.FAIL,
        now,
        code.value,
        error=TaskError(code=code, message=message),
        memory=memory,
        finished_at=now,
        lease_expires_at=None,
    )
