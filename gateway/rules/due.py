"""What a gateway does with a task that it looks at, and when it looks (design §4, Deadlines). Pure.

A deadline that has come is an invitation to look, never an order: the record decides.
"""

from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from contracts.settings import Windows
from contracts.tasks import FailureCode, GenerationTask, TaskStatus

# A gateway that moved a record to another queue has published its message by then, or has died in between.
PLACED_WITHIN_S: Final = 2.0


class Leave(Struct, frozen=True):
    """Nothing is to be done now. The record says when to look again, if at all."""


class Fail(Struct, frozen=True):
    """End the task."""

    code: FailureCode
    message: str


class Requeue(Struct, frozen=True):
    """The owner was lost or asked to stop, and attempts are left: back to the queue at the next epoch."""


class Reroute(Struct, frozen=True):
    """No lane took it in time: to the degraded queue, at the next epoch (FR-021 c)."""


class Republish(Struct, frozen=True):
    """It was moved to its queue, and its message may never have been sent: send it. A duplicate is harmless."""


class LookAgain(Struct, frozen=True):
    """It cannot be judged before *at*."""

    at: datetime


DueAction = Leave | Fail | Requeue | Reroute | Republish | LookAgain


def look_at(task: GenerationTask, *, is_placed: bool) -> datetime | None:
    """When a gateway has to look at *task*; None once it has ended.

    *is_placed*: this gateway has sent the message of this placement itself. Of the first placement (epoch 0) the
    message is always there: it is sent before the record is made.
    """
    if task.status.is_terminal:
        return None
    if task.status is TaskStatus.PROCESSING:
        return task.lease_expires_at or task.queued_at
    if is_placed or task.epoch == 0:
        return task.deadline_at
    return min(task.deadline_at, task.queued_at + timedelta(seconds=PLACED_WITHIN_S))


def due_action(
    task: GenerationTask | None,
    *,
    is_placed: bool,
    unbroken_s: float,
    windows: Windows,
    attempts: int,
    now: datetime,
) -> DueAction:
    """The table. *unbroken_s* is how long this gateway's connection has stood; *is_placed* as in `look_at`.

    1. No record: Leave. The message expires, or a worker that claims it makes the record; no client was given its id.
    2. Ended: Leave.
    3. Pending and overdue: on a lane Reroute (ADR 0007), on the degraded queue Fail(queue_overloaded).
    4. Pending, not overdue: Republish where it was moved here and its message may be missing (`look_at`), else Leave.
    5. Processing, lease live: Leave.
    6. Processing, lease over, but this gateway was cut off lately (so the owner may have been too): LookAgain later.
    7. Processing, lease over, attempts left (claims that were handed back do not count): Requeue.
    8. Processing, lease over, none left: Fail(worker_lost).
    """
    if task is None or task.status.is_terminal:  # 1, 2
        return Leave()
    if task.status is TaskStatus.PENDING:
        if now < task.deadline_at:  # 4
            at = look_at(task, is_placed=is_placed)
            return Republish() if at is not None and at <= now else Leave()
        if task.route == "lane":  # 3
            return Reroute()
        return Fail(
            FailureCode.QUEUE_OVERLOADED,
            f"no worker took it within {windows.wait_limit_s:g} s; submit it again later",
        )
    if task.lease_expires_at is not None and now < task.lease_expires_at:  # 5
        return Leave()
    if unbroken_s < windows.reconnect_grace_s:  # 6
        return LookAgain(now + timedelta(seconds=windows.reconnect_grace_s - unbroken_s))
    if task.lost_attempts < attempts:  # 7
        return Requeue()
    return Fail(
        FailureCode.WORKER_LOST, f"{task.lost_attempts} workers were lost while running it; submit it again"
    )  # 8
