"""The record of the task in hand. Every write is a compare-and-set that is retried until it is decided."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from contracts.tasks import GenerationTask, TaskStatus, encode_task
from contracts.topology import TASKS
from ops.nats.bucket import Versioned
from ops.nats.buckets import RECORDS
from ops.nats.entry import Entry
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry import metrics
from ops.telemetry.tracing import of_task, span

# NATS being away is no reason to drop a result (design §4, Settle): wait for it, without hurry.
RETRY_WAIT_S: Final = 0.2

log = structlog.get_logger("held")


class OwnershipLost(Exception):
    """The record is not this worker's any more. *record* is what stands there now; None when it expired."""

    def __init__(self, record: GenerationTask | None) -> None:
        super().__init__("the task was taken back or cancelled")
        self.record = record


class HeldTask:
    """A claimed task and the revision of its record. One per claim; safe to use from several asyncio tasks."""

    def __init__(self, link: NatsLink, task: GenerationTask, revision: int) -> None:
        self._link = link
        self._revision = revision
        self._lock = asyncio.Lock()
        self.task = task
        self._owner, self._epoch = task.owner, task.epoch
        self.unanswered_since_s: float | None = None
        """Since when the server has not answered about the record, by the monotonic clock; None while it answers."""

    async def update(self, change: Callable[[GenerationTask], GenerationTask]) -> GenerationTask:
        """Moves the record by *change* and returns the task as stored. Waits for the server as long as it takes.

        Raises OwnershipLost; then nothing of this call was stored.
        """
        is_logged = False
        async with self._lock:
            while True:
                changed = change(self.task)
                encoded = encode_task(changed)
                try:
                    self._revision = await self._link.entries.update(
                        TASKS, changed.id, encoded, revision=self._revision
                    )
                except WrongRevision:
                    if await self._refresh(encoded):
                        return self.task
                except TransportUnavailable as error:
                    self._unanswered()
                    if not is_logged:  # once for an outage, or for a bucket that takes nothing
                        log.warning("record_not_stored", task_id=changed.id, error=str(error))
                        is_logged = True
                    if await self._refresh(encoded):
                        return self.task
                    await asyncio.sleep(RETRY_WAIT_S)
                else:
                    self.task, self.unanswered_since_s = changed, None
                    return changed

    async def end(self, change: Callable[[GenerationTask], GenerationTask]) -> GenerationTask:
        """As `update`, by a *change* that ends the task: in the span `settle`, and counted. Raises OwnershipLost."""
        with span("settle", of_task(self.task), unless=(OwnershipLost,)):
            ended = await self.update(change)
        metrics.task_ended(ended)
        return ended

    async def check(self) -> None:
        """Reads the record, unless this worker has settled it. Raises OwnershipLost when it belongs to others."""
        async with self._lock:
            if not self.task.status.is_terminal:
                await self._refresh(None)

    async def _refresh(self, written: bytes | None) -> bool:
        """Reads the record; True when it is what was *written*: then an unanswered write did succeed."""
        entry = await self._read()
        if entry is None or entry.value is None:
            raise OwnershipLost(None)
        record = Versioned(RECORDS, entry).value
        if record is None:
            raise OwnershipLost(None)
        if entry.value == written:
            self.task, self._revision = record, entry.revision
            return True
        if (record.status, record.owner, record.epoch) != (TaskStatus.PROCESSING, self._owner, self._epoch):
            raise OwnershipLost(record)
        self.task, self._revision = record, entry.revision
        return False

    def _unanswered(self) -> None:
        if self.unanswered_since_s is None:
            self.unanswered_since_s = time.monotonic()

    async def _read(self) -> Entry | None:
        is_logged = False
        while True:
            try:
                return await self._link.entries.get(TASKS, self.task.id)
            except TransportUnavailable as error:
                self._unanswered()
                if not is_logged:  # once for an outage
                    log.warning("record_unreachable", task_id=self.task.id, error=str(error))
                    is_logged = True
                await asyncio.sleep(RETRY_WAIT_S)
