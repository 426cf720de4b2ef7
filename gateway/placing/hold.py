"""Requests that are held until a worker of the degraded queue has claimed their task (design §4, Accept 4).

A held task is withdrawn when its last caller hangs up. Callers with the same Idempotency-Key share a task, even across
gateways. A gateway therefore asks the others before it withdraws one (ADR 0011).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import structlog

from contracts import lifecycle
from contracts.tasks import GenerationTask, TaskStatus
from contracts.topology import WAITING_SUBJECTS, waiting_subject
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_board import TaskBoard
from gateway.placing.leftovers import remove_leftovers
from gateway.placing.retries import until_answered
from gateway.placing.sweeper import Sweeper
from ops.artifacts import Artifacts
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry import metrics
from ops.telemetry.tracing import of_task, span
from ops.waiting import unless

# The sweeper usually looks before this. With the time to settle, a caller is held until 30.5 s after the queueing.
LOOK_AFTER_S: Final = 0.25
SETTLE_WITHIN_S: Final = 0.7
SETTLE_RETRY_S: Final = 0.05
ASK_S: Final = 0.2

UntilGone = Callable[[], Coroutine[Any, Any, None]]

log = structlog.get_logger("hold")


class CallerGone(Exception):
    """The caller hung up while it was held. Nobody reads an answer."""


def is_held(task: GenerationTask) -> bool:
    """Whether callers of *task* are held: it waits for a degraded worker for the first time, and no client has its
    id."""
    return task.status is TaskStatus.PENDING and task.route == "degraded" and task.attempt == 0 and not task.promised


class Holds:
    """The requests that this gateway holds. `start` it before use."""

    def __init__(
        self, *, link: NatsLink, artifacts: Artifacts, tasks: TaskBoard, sweeper: Sweeper, stopping: asyncio.Event
    ) -> None:
        self._link = link
        self._artifacts = artifacts
        self._tasks = tasks
        self._sweeper = sweeper
        self._stopping = stopping
        self._callers: Counter[str] = Counter()

    async def start(self) -> None:
        """Answers other gateways from now on. Raises TransportUnavailable."""
        await self._link.core.answer(WAITING_SUBJECTS, self._has_caller)

    def _has_caller(self, subject: str) -> bool:
        return self._callers[subject.rsplit(".", 1)[-1]] > 0

    async def hold(
        self, snapshot: Snapshot, *, is_shared: bool, until_gone: UntilGone, hold_s: float | None = None
    ) -> Snapshot:
        """The task as soon as its callers are no longer held: a worker claimed it, it ended, or it was promised.

        This gateway promises the task when the gateway stops, and after *hold_s*, which is as long as the caller waits.
        This returns within 1 s of the task's deadline, even when no other sweeper lives.

        *until_gone* returns when the caller has hung up. If that was the last caller of the task, the task is withdrawn
        and its place is free. *is_shared*: other gateways may hold callers of the task.
        Raises CallerGone, and TransportUnavailable when it is unknown what becomes of the task.
        """
        if not is_held(snapshot.task):
            return snapshot
        task_id = snapshot.task.id
        with span("hold", of_task(snapshot.task)):
            with self._counted(task_id):
                free = await unless(until_gone(), self._until_free(snapshot, hold_s))
            if free:
                return free.value
            log.info("caller_gone", task_id=task_id, callers=self._callers[task_id])
            await self._leave(snapshot, is_shared=is_shared)
            raise CallerGone

    @contextmanager
    def _counted(self, task_id: str) -> Iterator[None]:
        self._callers[task_id] += 1
        log.info("caller_held", task_id=task_id, callers=self._callers[task_id])
        try:
            yield
        finally:
            self._callers[task_id] -= 1
            if not self._callers[task_id]:
                del self._callers[task_id]

    async def promise(self, snapshot: Snapshot) -> Snapshot:
        """Promises the task, so that a client may be given its id: from now on no closed connection withdraws it.

        A task that is not held is returned as it is. Raises TransportUnavailable.
        """
        return await self._move_held(snapshot, lifecycle.promise)

    async def _until_free(self, snapshot: Snapshot, hold_s: float | None) -> Snapshot:
        held_until = None if hold_s is None else datetime.now(UTC) + timedelta(seconds=hold_s)
        while is_held(snapshot.task):
            now = datetime.now(UTC)
            if self._stopping.is_set() or (held_until is not None and now >= held_until):
                return await self.promise(snapshot)
            left_s = (snapshot.task.deadline_at - now).total_seconds() + LOOK_AFTER_S
            if left_s <= 0:
                snapshot = await self._settle(snapshot.task.id)
            else:
                if held_until is not None:
                    left_s = min(left_s, (held_until - now).total_seconds())
                waited = await self._tasks.readers.wait(snapshot, seen_revision=snapshot.revision, timeout_s=left_s)
                snapshot = _present(waited)
        return snapshot

    async def _settle(self, task_id: str) -> Snapshot:
        """Does what the sweeper does at the deadline: that of this gateway may be behind, and may be the only one."""
        try:
            async with asyncio.timeout(SETTLE_WITHIN_S):
                while True:
                    try:
                        return _present(await self._sweeper.look(task_id))
                    except (TransportUnavailable, WrongRevision):
                        await asyncio.sleep(SETTLE_RETRY_S)
        except TimeoutError as error:
            raise TransportUnavailable("the record could not be settled in time") from error

    async def _leave(self, snapshot: Snapshot, *, is_shared: bool) -> None:
        """Withdraws the task unless another caller waits for it."""
        task_id = snapshot.task.id

        async def withdraw() -> Snapshot | None:
            # this gateway is asked too
            if is_shared and await self._link.core.ask(waiting_subject(task_id), timeout_s=ASK_S):
                return None
            return await self._move_held(snapshot, partial(lifecycle.withdraw, now=datetime.now(UTC)))

        try:
            left = await until_answered(withdraw)
        except TransportUnavailable as error:
            log.warning("not_withdrawn", task_id=task_id, error=str(error))  # the wait limit ends it
            return
        if left is None:
            log.info("still_awaited", task_id=task_id)
        elif left.task.withdrawn:
            await remove_leftovers(left.task, link=self._link, artifacts=self._artifacts)
            log.info("task_withdrawn", task_id=task_id)

    async def _move_held(self, snapshot: Snapshot, move: Callable[[GenerationTask], GenerationTask]) -> Snapshot:
        """Makes *move* by compare-and-set if the task is held. Returns the task as it is then."""
        moved = await self._tasks.move(
            snapshot.task.id, lambda task, _: move(task) if is_held(task) else None, known=snapshot
        )
        if moved is None:
            raise _gone()
        if moved.before is not None and moved.task.status.is_terminal:
            metrics.task_ended(moved.task)
        return Snapshot(moved.task, moved.revision)


def _present(snapshot: Snapshot | None) -> Snapshot:
    if snapshot is None:
        raise _gone()
    return snapshot


def _gone() -> TransportUnavailable:
    return TransportUnavailable("the record is gone")
