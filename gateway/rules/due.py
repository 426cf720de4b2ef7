"""What to do when a timer is due (design §4, Timers). Pure: a due timer is an invitation to look, never an order."""

from datetime import datetime, timedelta

from msgspec import Struct

from contracts.settings import Windows
from contracts.tasks import FailureCode, GenerationTask, TaskStatus
from contracts.topology import TimerKind


class Forget(Struct, frozen=True):
    """The task has ended: nothing to do."""


class RecordAsRefused(Struct, frozen=True):
    """The task has no record: write one that says it was refused, so that its message never runs."""


class Fail(Struct, frozen=True):
    """End the task."""

    code: FailureCode
    message: str


class Requeue(Struct, frozen=True):
    """The owner is gone, lost or by order, and attempts are left: back to the queue at the next epoch."""


class Reroute(Struct, frozen=True):
    """No lane took it in time: to the degraded queue, at the next epoch (FR-021 c)."""


class Republish(Struct, frozen=True):
    """Waiting, not overdue: make sure that its message and a timer at *at* exist."""

    at: datetime


class SetTimer(Struct, frozen=True):
    """Look again at *at*."""

    kind: TimerKind
    at: datetime


DueAction = Forget | RecordAsRefused | Fail | Requeue | Reroute | Republish | SetTimer


def due_action(
    task: GenerationTask | None,
    *,
    unbroken_s: float,
    windows: Windows,
    attempts: int,
    now: datetime,
) -> DueAction:
    """The handler's table; the record decides, not the timer's kind.

    *unbroken_s* is for how long this sweeper's connection has stood.

    1. No record: RecordAsRefused.
    2. Ended: Forget.
    3. Pending and overdue: on a lane Reroute (ADR 0007), on the degraded queue Fail(queue_overloaded).
    4. Pending, not overdue: Republish.
    5. Processing, lease live: SetTimer at its end.
    6. Processing, lease over, but this sweeper was cut off lately (so the owner may have been too): SetTimer later.
    7. Processing, lease over, attempts left, of which those that were handed back are none: Requeue.
    8. Processing, lease over, none left: Fail(worker_lost).
    """
    if task is None:  # 1
        return RecordAsRefused()
    if task.status.is_terminal:  # 2
        return Forget()
    if task.status is TaskStatus.PENDING:
        if now < task.deadline_at:  # 4
            return Republish(task.deadline_at)
        if task.route == "lane":  # 3
            return Reroute()
        return Fail(
            FailureCode.QUEUE_OVERLOADED,
            f"no worker took it within {windows.wait_limit_s:g} s; submit it again later",
        )
    if task.lease_expires_at is not None and now < task.lease_expires_at:  # 5
        return SetTimer("lease", task.lease_expires_at)
    if unbroken_s < windows.reconnect_grace_s:  # 6
        return SetTimer("lease", now + timedelta(seconds=windows.reconnect_grace_s))
    if task.lost_attempts < attempts:  # 7
        return Requeue()
    return Fail(
        FailureCode.WORKER_LOST, f"{task.lost_attempts} workers were lost while running it; submit it again"
    )  # 8
