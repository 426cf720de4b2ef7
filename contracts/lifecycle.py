"""The task state machine: one table. Pure; `now` is an argument; an illegal move raises and changes nothing."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal

from msgspec.structs import replace

from contracts.memory import MemoryReading, SwapReceipt
from contracts.order import words
from contracts.progress import StepsDone
from contracts.tasks import (
    HANDED_BACK_MAX,
    TIMELINE_MAX,
    FailureCode,
    GenerationTask,
    OrderDecision,
    RoutingDecision,
    TaskError,
    TaskStatus,
    TimelineEntry,
    VideoFile,
)

# In a timeline: the owner was asked to stop, and gave the task back.
HANDED_BACK: Final = "handed_back"
# And: the owner could not go on, and released its lease.
LEASE_RELEASED: Final = "lease_released"
# And: the supervisor of the owner found it dead.
WORKER_LOST: Final = "worker_lost"
# And: another request took its place on the degraded queue.
DISPLACED: Final = "displaced"


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


def claim(
    task: GenerationTask,
    *,
    owner: str,
    worker: str,
    lease_s: float,
    now: datetime,
    attempt_traceparent: str | None = None,
    order: OrderDecision | None = None,
) -> GenerationTask:
    """pending → processing, owned by *owner* for *lease_s*. This is one more attempt; *attempt_traceparent* is its
    span, if it is traced. *order* says why the owner took this task and not another."""
    return _move(
        task,
        TaskEvent.CLAIM,
        now,
        f"attempt {task.attempt + 1} by {worker}" + ("" if order is None else f": {words(order.rules)}"),
        attempt=task.attempt + 1,
        owner=owner,
        worker=worker,
        claimed_at=now,
        attempt_traceparent=attempt_traceparent,
        order=order,
        lease_expires_at=now + timedelta(seconds=lease_s),
        progress=StepsDone(step=0, steps=task.parameters.steps),
    )


def renew(task: GenerationTask, *, progress: StepsDone, lease_s: float, now: datetime) -> GenerationTask:
    """The owner is alive: a later lease and the progress so far. The status does not change.

    Raises IllegalTransition when the task is not processing.
    """
    if task.status is not TaskStatus.PROCESSING:
        raise IllegalTransition(f"task {task.id} is {task.status}: its lease cannot be renewed")
    return replace(task, progress=progress, lease_expires_at=now + timedelta(seconds=lease_s))


def release_lease(
    task: GenerationTask, *, reason: str, now: datetime, on_purpose: bool = False, is_lost: bool = False
) -> GenerationTask:
    """The owner cannot go on: the lease ends now, and the sweeper decides what follows.

    *on_purpose*: the owner was asked to stop. That costs the task no attempt, HANDED_BACK_MAX times. *is_lost*: the
    owner is dead, and its supervisor reports it.
    """
    if task.status is not TaskStatus.PROCESSING:
        raise IllegalTransition(f"task {task.id} is {task.status}: it has no lease")
    if on_purpose:
        handed_back = min(HANDED_BACK_MAX, task.handed_back + 1)
        return with_event(replace(task, lease_expires_at=now, handed_back=handed_back), HANDED_BACK, now, reason)
    return with_event(replace(task, lease_expires_at=now), WORKER_LOST if is_lost else LEASE_RELEASED, now, reason)


def was_handed_back(task: GenerationTask) -> bool:
    """Whether the last thing that happened to *task* is that its owner was asked to stop and gave it back."""
    return bool(task.timeline) and task.timeline[-1].event == HANDED_BACK


def why_requeued(task: GenerationTask) -> Literal["handed_back", "lease_released", "worker_lost"]:
    """Why *task*, whose lease is over, has lost its owner: `worker_lost` if the owner reported nothing."""
    last = task.timeline[-1].event if task.timeline else ""
    if last == HANDED_BACK:
        return "handed_back"
    return "lease_released" if last == LEASE_RELEASED else "worker_lost"


def requeue(
    task: GenerationTask, *, route: Literal["lane", "degraded"], decision: RoutingDecision, wait_s: float, now: datetime
) -> GenerationTask:
    """processing → pending at the next epoch, on *route*: the worker was lost or left, and the task has attempts
    left."""
    detail = f"{task.worker} {'left' if was_handed_back(task) else 'was lost'} in attempt {task.attempt}"
    return _place(task, TaskEvent.REQUEUE, detail, route=route, decision=decision, wait_s=wait_s, now=now)


def reroute(task: GenerationTask, *, decision: RoutingDecision, wait_s: float, now: datetime) -> GenerationTask:
    """pending on a lane → pending on the degraded queue at the next epoch (FR-021 c).

    Raises IllegalTransition when the task is not pending, or is on the degraded queue already.
    """
    if task.route == "degraded":
        raise IllegalTransition(f"task {task.id} is on the degraded queue already")
    detail = "no lane took it in time"
    return _place(task, TaskEvent.REROUTE, detail, route="degraded", decision=decision, wait_s=wait_s, now=now)


def _place(
    task: GenerationTask,
    event: TaskEvent,
    detail: str,
    *,
    route: Literal["lane", "degraded"],
    decision: RoutingDecision,
    wait_s: float,
    now: datetime,
) -> GenerationTask:
    return _move(
        task,
        event,
        now,
        detail,
        route=route,
        epoch=task.epoch + 1,
        owner=None,
        decision=decision,
        queued_at=now,
        deadline_at=now + timedelta(seconds=wait_s),
        lease_expires_at=None,
        progress=None,
    )


def finish(
    task: GenerationTask,
    *,
    video: VideoFile,
    memory: MemoryReading | None,
    now: datetime,
    swap: SwapReceipt | None = None,
) -> GenerationTask:
    """processing → done. The stored record is what publishes *video*; *swap* is the proof of room for its model."""
    return _move(
        task,
        TaskEvent.FINISH,
        now,
        "",
        video=video,
        memory=memory,
        swap=swap,
        finished_at=now,
        lease_expires_at=None,
        progress=StepsDone(step=task.parameters.steps, steps=task.parameters.steps),
    )


def fail(
    task: GenerationTask,
    *,
    code: FailureCode,
    message: str,
    now: datetime,
    memory: MemoryReading | None = None,
    swap: SwapReceipt | None = None,
) -> GenerationTask:
    """pending or processing → failed, with *code*."""
    return _move(
        task,
        TaskEvent.FAIL,
        now,
        code.value,
        error=TaskError(code=code, message=message),
        memory=memory,
        swap=swap,
        finished_at=now,
        lease_expires_at=None,
    )


def withdraw(task: GenerationTask, *, now: datetime) -> GenerationTask:
    """pending → failed: every caller hung up while the task was held, and no client was given its id.

    Raises IllegalTransition when the task is not pending, or when a client was given the id.
    """
    if task.promised or task.status is not TaskStatus.PENDING:
        raise IllegalTransition(f"task {task.id} is {task.status}, promised: {task.promised}; it cannot be withdrawn")
    failed = fail(task, code=FailureCode.CANCELLED, message="the caller hung up before it was accepted", now=now)
    return replace(failed, withdrawn=True)


def take_back(task: GenerationTask, *, now: datetime) -> GenerationTask:
    """pending or processing → failed: the batch that it came with was not accepted, and no client was given its id (ADR
    0053). Raises IllegalTransition when the task has ended."""
    failed = fail(task, code=FailureCode.CANCELLED, message="the batch that it came with was not accepted", now=now)
    return replace(failed, withdrawn=True)


def displace(task: GenerationTask, *, by: GenerationTask, now: datetime) -> GenerationTask:
    """pending → failed: *by*, of a higher class, takes its place on the full degraded queue (ADR 0039).

    Raises IllegalTransition when it is not pending: a worker has claimed it, or it has ended.
    """
    if task.status is not TaskStatus.PENDING:
        raise IllegalTransition(f"task {task.id} is {task.status}: it cannot be displaced")
    what = f"a request of the class {by.priority} took its place"
    displaced = with_event(replace(task, displaced_by=by.id), DISPLACED, now, what)
    return fail(displaced, code=FailureCode.QUEUE_OVERLOADED, message=f"{what}; submit it again later", now=now)


def promise(task: GenerationTask) -> GenerationTask:
    """A client is about to be given the id. The status does not change. Raises IllegalTransition once it has ended."""
    if task.status.is_terminal:
        raise IllegalTransition(f"task {task.id} is {task.status}: it cannot be promised")
    return replace(task, promised=True)
