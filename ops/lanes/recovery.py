"""What the supervisor does for a lane whose process has ended.

It stores the start that failed (SC-006), and gives back the task that the lane had in hand, which no process holds now.
"""

from collections import deque
from datetime import UTC, datetime
from typing import Final

import msgspec
import structlog

from contracts import lifecycle
from contracts.lanes import ColdStart, InHand
from contracts.tasks import GenerationTask, TaskStatus
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import STARTS
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink
from ops.nats.records import TaskRecords

KNOWN_MAX: Final = 256

log = structlog.get_logger("after_death")


class LostStarts:
    """Stores cold starts that ended with their process, each once, and none that the lane stored itself. Call `start`
    first."""

    def __init__(self, link: NatsLink) -> None:
        self._bucket = Bucket(link, STARTS)
        self._known: deque[ColdStart] = deque(maxlen=KNOWN_MAX)
        self._seen: dict[str, int] = {}
        self._stored: dict[str, int] = {}
        self._to_store: list[ColdStart] = []

    async def start(self) -> None:
        """Watches the bucket; returns once what is there now has been seen. Raises TransportUnavailable."""
        await (await self._bucket.watch(self._on_entry, history=True, on_again=self._again)).wait()

    def _again(self) -> None:
        self._known.clear()
        self._seen.clear()
        self._stored.clear()

    def lost(self, start: ColdStart) -> None:
        """*start* ended with its process. `store` stores it."""
        self._to_store.append(start)

    async def store(self) -> bool:
        """Stores the starts that were lost, and returns whether nothing is left to store. Raises
        TransportUnavailable."""
        while self._to_store:
            start = self._to_store[0]
            if not any(is_same_start(start, known) for known in self._known):
                seen = self._seen.get(start.model, 0)
                expected = min(seen, self._stored.get(start.model, seen))
                try:
                    await self._bucket.update(start.model, start, revision=expected)
                except WrongRevision:
                    # the watch has not brought everything yet, perhaps not this very entry; or the entry was removed.
                    # The read never lowers what the watch has seen: the watch may bring the entry during the read
                    last = await self._bucket.get(start.model)
                    self._stored[start.model] = 0 if last is None else last.revision
                    return False
                log.info("cold_start", **msgspec.structs.asdict(start))
            del self._to_store[0]
        return True

    def _on_entry(self, entry: Versioned[ColdStart]) -> None:
        self._seen[entry.key] = entry.revision
        if entry.value is not None:
            self._known.append(entry.value)


def is_same_start(one: ColdStart, other: ColdStart) -> bool:
    """Whether both are starts of one process. A lane has one process at a time, so the starts of two processes do not
    overlap. Pure.

    A start may have ended in the microsecond in which it began: then it overlaps with nothing.
    """
    overlap = one.started_at < other.ended_at and other.started_at < one.ended_at
    return one.worker == other.worker and (overlap or one.started_at == other.started_at)


async def give_back(link: NatsLink, held: InHand, *, how: str) -> None:
    """Ends the lease of *held*, whose owner has been reaped, so that a gateway looks at the task now. *how* says how
    the process ended.

    It touches only a record that this very owner holds: a worker that claimed the task later keeps it. Raises
    TransportUnavailable.
    """

    def released(task: GenerationTask, _: int) -> GenerationTask | None:
        now = datetime.now(UTC)
        if not _is_in_hand(task, held) or (task.lease_expires_at is not None and task.lease_expires_at <= now):
            return None
        return lifecycle.release_lease(task, reason=f"the process of {task.worker} ended: {how}", now=now, is_lost=True)

    # `move` may have to read twice: the owner's last write may have been on its way
    moved = await TaskRecords(link, reports=False).move(held.task_id, released)
    if moved is not None and moved.before is not None:
        task = moved.task
        log.warning("lease_released", task_id=task.id, attempt=task.attempt, worker=task.worker)


def _is_in_hand(task: GenerationTask, held: InHand) -> bool:
    return (task.status, task.owner) == (TaskStatus.PROCESSING, held.owner)
