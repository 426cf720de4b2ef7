"""Makes a task of a work queue this worker's own, by compare-and-set on its record (design §4, Claim)."""

import asyncio
from datetime import UTC, datetime
from typing import Final

import structlog
from nats.aio.msg import Msg

from contracts import lifecycle
from contracts.settings import Windows
from contracts.tasks import (
    FailureCode,
    GenerationTask,
    OrderDecision,
    UnreadableRecord,
    UnreadableTask,
    encode_task,
    may_be_newer,
)
from contracts.topology import TASKS
from lane_worker.runtime.claim import Drop, Expire, Mine, Reread, Take, claim_decision, is_overdue
from lane_worker.runtime.held import HeldTask
from lane_worker.runtime.orphans import delete_or_leave
from lane_worker.runtime.queued import is_fresh
from ops.artifacts import Artifacts
from ops.nats.bucket import Versioned
from ops.nats.buckets import RECORDS
from ops.nats.entry import Entry
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry import metrics
from ops.telemetry.tracing import failed, of_task, span

REREAD_WAIT_S: Final = 0.05
# The longest pause between two tries to claim while the server is away, or takes no record.
UNANSWERED_MAX_S: Final = 1.0
# Warmlane moves a record before it sends the message. So a message that is ahead of its record for 5 s is not ours.
AHEAD_MAX_LOOKS: Final = 100

log = structlog.get_logger("loop")


class NotClaimed(Exception):
    """The server does not answer, and this worker leaves: another worker gets the message."""


class Claims:
    """Claims tasks for the process *owner* of the worker that is called *worker*."""

    def __init__(self, link: NatsLink, artifacts: Artifacts, *, owner: str, worker: str, windows: Windows) -> None:
        self._link = link
        self._artifacts = artifacts
        self._owner = owner
        self._worker = worker
        self._windows = windows

    async def claim(
        self,
        queued: GenerationTask,
        message: Msg,
        stop: asyncio.Event,
        attempt: str | None = None,
        order: OrderDecision | None = None,
    ) -> HeldTask | None:
        """The task that *message* carries, held by this worker, or None when it is not to be run.

        *attempt* is the `traceparent` of what is done for it from then on; *order* says why it comes next. Raises
        UnreadableTask for a message whose record does not catch up with it, and NotClaimed where the server does not
        answer and *stop* is set. A claim of ours that was stored all the same ends with its lease.
        """
        looks_ahead, expects_record = 0, not is_fresh(message, queued)
        unanswered = 0
        while True:
            pause_s = REREAD_WAIT_S
            try:
                entry = await self._link.entries.get(TASKS, queued.id) if expects_record else None
                expects_record = True
                return await self._try_claim(queued, entry, attempt, order)
            except WrongRevision:
                continue  # somebody moved the record between our look and our write: look again
            except _Ahead:
                looks_ahead += 1
                if looks_ahead == AHEAD_MAX_LOOKS:
                    raise UnreadableTask("its epoch stays ahead of the record's - at `$.epoch`") from None
            except TransportUnavailable as error:
                # whether the claim was stored is unknown; the next look shows it (`Mine`)
                if not unanswered:  # once for an outage
                    log.warning("claim_interrupted", task_id=queued.id, error=str(error))
                if stop.is_set():
                    log.warning("claim_given_up", task_id=queued.id, error=str(error))
                    raise NotClaimed from None
                pause_s = min(UNANSWERED_MAX_S, REREAD_WAIT_S * 2 ** min(unanswered, 10))
                unanswered += 1
            await asyncio.sleep(pause_s)

    async def _try_claim(
        self,
        queued: GenerationTask,
        entry: Entry | None,
        attempt: str | None = None,
        order: OrderDecision | None = None,
    ) -> HeldTask | None:
        revision = entry.revision if entry is not None else 0
        record = None if entry is None else Versioned(RECORDS, entry).value
        if entry is not None and entry.value is not None and record is None:
            if may_be_newer(queued.id, entry.value):
                raise UnreadableRecord("the record of its task cannot be read")
            return None
        decision = claim_decision(queued, record, revision=revision, owner=self._owner, now=datetime.now(UTC))
        match decision:
            case Drop():
                return None
            case Reread():
                raise _Ahead
            case Mine(task, revision):
                if entry is not None and is_overdue(task, entry.time):  # the claim itself was stored too late
                    await self._expire(task, revision)
                    return None
                return HeldTask(self._link, task, revision)
            case Expire(task, revision):
                await self._expire(task, revision)
                return None
            case Take(task, revision):
                return await self._take(task, revision, attempt, order)

    async def _take(
        self, task: GenerationTask, revision: int, attempt: str | None, order: OrderDecision | None
    ) -> HeldTask | None:
        claimed = lifecycle.claim(
            task,
            owner=self._owner,
            worker=self._worker,
            lease_s=self._windows.lease_s,
            now=datetime.now(UTC),
            attempt_traceparent=attempt,
            order=order,
        )
        revision = await self._link.entries.update(TASKS, task.id, encode_task(claimed), revision=revision)
        metrics.task_claimed(claimed)
        if is_overdue(task, datetime.now(UTC)):
            await self._expire(claimed, revision)
            return None
        return HeldTask(self._link, claimed, revision)

    async def _expire(self, task: GenerationTask, revision: int) -> None:
        """Ends *task*, which waited too long to be run."""
        expired = lifecycle.fail(
            task,
            code=FailureCode.QUEUE_OVERLOADED,
            message=f"no worker took it within {self._windows.wait_limit_s:g} s; submit it again later",
            now=datetime.now(UTC),
        )
        with span(
            "expire", of_task(task, worker=self._worker), traceparent=task.traceparent, unless=(WrongRevision,)
        ) as current:
            await self._link.entries.update(TASKS, task.id, encode_task(expired), revision=revision)
            failed(current, FailureCode.QUEUE_OVERLOADED.value)
        metrics.task_ended(expired)
        if task.image_path is not None:  # a refused request leaves nothing behind
            await delete_or_leave(self._artifacts, task.image_path)


class _Ahead(Exception):
    """The message is ahead of the record that was read."""
