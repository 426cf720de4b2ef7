"""Timers that the server may have lost are set again (ADR 0030).

Whoever moves a task sets its timer first and writes the record then. When the server loses what it stored last just in
between, or somebody purges the timers, the record stands without one, and nobody would ever look at the task: it would
be `pending` for ever.
"""

import asyncio
import contextlib
from datetime import datetime
from typing import Final

import structlog

from contracts.tasks import GenerationTask, TaskStatus, encode_task
from contracts.topology import TimerKind
from gateway.boards.task_board import TaskBoard
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.telemetry.seldom import Seldom

# By then, what was on its way when the connection broke is written, or given up.
SETTLE_S: Final = 5.0
RETRY_S: Final = 1.0
PURGED_EVERY_S: Final = 5.0

log = structlog.get_logger("rearm")


class Rearm:
    """Sets the timer of every task that has not ended, once, some time after each reconnect and each reading anew, and
    when `look` finds them gone.

    A timer that is there is replaced by an equal one; one too many finds nothing to do. Every gateway does it: who is
    alone must not rely on others, and tasks that have not ended are few.
    """

    def __init__(self, *, link: NatsLink, tasks: TaskBoard) -> None:
        self._link, self._tasks = link, tasks
        self._wanted = asyncio.Event()
        self._seldom = Seldom()
        link.connection.on_reconnect(self._wanted.set)
        tasks.on_told_anew(self._wanted.set)

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await asyncio.sleep(SETTLE_S)
            try:
                await self._rearm()
            except TransportUnavailable as error:
                self._seldom.log(log.info, "rearm_delayed", error=str(error))
                self._wanted.set()
                await asyncio.sleep(RETRY_S)

    async def watch(self) -> None:
        """Looks now and then, until cancelled: a purge of the timers tells nobody."""
        while True:
            await asyncio.sleep(PURGED_EVERY_S)
            with contextlib.suppress(TransportUnavailable):
                await self.look()

    async def look(self) -> None:
        """Has the timers set anew if the oldest task that has not ended has none: whatever took those of later tasks
        took its own. Raises TransportUnavailable."""
        oldest = min(self._tasks.live(), key=lambda snapshot: snapshot.task.created_at, default=None)
        if oldest is None or await self._link.timers.exists(oldest.task.id) or oldest not in self._tasks.live():
            return
        log.warning("timers_gone", task_id=oldest.task.id, advice="somebody purged DEADLINES; they are set again")
        self._wanted.set()

    async def _rearm(self) -> None:
        for task in [snapshot.task for snapshot in self._tasks.live()]:
            kind, at = timer_of(task)
            await self._link.timers.set(kind, task.id, at, encode_task(task))


def timer_of(task: GenerationTask) -> tuple[TimerKind, datetime]:
    """The timer that *task*, which has not ended, has by its record. Pure."""
    if task.status is TaskStatus.PROCESSING and task.lease_expires_at is not None:
        return "lease", task.lease_expires_at
    return "admit", task.deadline_at
