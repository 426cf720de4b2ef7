"""Whether a worker may take a task (design §4, Claim). Pure."""

from datetime import datetime

from msgspec import Struct

from contracts.tasks import GenerationTask, TaskStatus


class Take(Struct, frozen=True):
    """Claim *task*; *revision* 0 means that there is no record yet and the claim makes it."""

    task: GenerationTask
    revision: int


class Mine(Struct, frozen=True):
    """This process has claimed it already; the answer to its claim was lost."""

    task: GenerationTask
    revision: int


class Expire(Struct, frozen=True):
    """It waited too long on the degraded queue: end it, never run it (FR-017)."""

    task: GenerationTask
    revision: int


class Drop(Struct, frozen=True):
    """The message is out of date: ack it and forget it."""


class Reread(Struct, frozen=True):
    """The message is ahead of the record that was read: read again."""


ClaimDecision = Take | Mine | Expire | Drop | Reread


def claim_decision(
    queued: GenerationTask,
    record: GenerationTask | None,
    *,
    revision: int,
    owner: str,
    now: datetime,
) -> ClaimDecision:
    """What to do with the message *queued*, given the *record* of its task at *revision*.

    1. No record (the gateway was slower): the message supplies it. No record at a *revision* other than 0 is a deletion
       marker: somebody deleted the record, and the task with it, or it expired. Drop.
    2. The message's epoch is below the record's: Drop. Above it: Reread. The message is for another model, as when two
       requests use one Idempotency-Key at once: Drop, for the record's own message is in another queue.
    3. This process owns the record at this epoch, and its lease stands: Mine.
    4. The record is not pending: Drop. This includes one whose lease this process gave back: the sweeper decides then.
    5. On the degraded route and overdue: Expire. A lane takes an overdue task: the first to move the record wins.
    6. Take, with the record's parameters and not the message's.
    """
    if record is None:  # 1
        if revision:
            return Drop()
        record = queued
    if queued.epoch < record.epoch or queued.model != record.model:  # 2
        return Drop()
    if queued.epoch > record.epoch:
        return Reread()
    if record.status is TaskStatus.PROCESSING and record.owner == owner and _lease_stands(record, now):  # 3
        return Mine(record, revision)
    if record.status is not TaskStatus.PENDING:  # 4
        return Drop()
    if is_overdue(record, now):  # 5
        return Expire(record, revision)
    return Take(record, revision)  # 6


def _lease_stands(task: GenerationTask, now: datetime) -> bool:
    return task.lease_expires_at is not None and now < task.lease_expires_at


def is_overdue(task: GenerationTask, now: datetime) -> bool:
    """Whether *task* may no longer start: on the degraded route, past its wait limit."""
    return task.route == "degraded" and now >= task.deadline_at
