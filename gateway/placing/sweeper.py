"""Looks at every task whose deadline has come, and does what `due.py` says. Any number of gateways share the work."""

import asyncio
import contextlib
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog
from opentelemetry.trace import Span

from contracts import lifecycle
from contracts.settings import Catalog
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, encode_task
from contracts.topology import TASKS, work_stream, work_subject
from gateway.boards.lane_board import LaneBoard
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_board import TaskBoard
from gateway.placing.fallbacks import Fallbacks
from gateway.placing.leftovers import remove_leftovers
from gateway.rules.due import Fail, Leave, LookAgain, Republish, Requeue, Reroute, due_action
from ops.artifacts import Artifacts
from ops.background import Background
from ops.nats.errors import StreamFull, TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry import metrics
from ops.telemetry.tracing import (
    CONSUMER,
    PRODUCER,
    TRACEPARENT,
    Attributes,
    current_span,
    failed,
    message_name,
    of_attempt,
    of_message,
    of_task,
    record,
    span,
    traceparent_of,
)
from ops.waiting import set_within

SWEEPER: Final = "sweeper"
BATCH: Final = 64
# So that a clock that was set is noticed.
SLEEP_MAX_S: Final = 5.0
# The time between two looks at whether the watch has caught up.
BEHIND_S: Final = 0.5
# A watch that has brought nothing for so long, though the connection stands, is in trouble.
BEHIND_MAX_S: Final = 10.0

log = structlog.get_logger("sweeper")


class Sweeper:
    """The effects of a deadline. `run` looks when one has come; code that cannot wait for that calls `look`."""

    def __init__(
        self,
        *,
        link: NatsLink,
        artifacts: Artifacts,
        tasks: TaskBoard,
        lanes: LaneBoard,
        fallbacks: Fallbacks,
        catalog: Catalog,
        background: Background,
    ) -> None:
        self._background = background
        self._link = link
        self._artifacts = artifacts
        self._tasks = tasks
        self._lanes = lanes
        self._fallbacks = fallbacks
        self._catalog = catalog
        self._sooner = asyncio.Event()
        tasks.deadlines.on_sooner = self._sooner.set

    async def run(self, stop: asyncio.Event) -> None:
        """Looks at every task whose deadline has come, until *stop* is set.

        It does not look while the watch of the records is behind: what seems due then may have been done long ago.
        """
        await self._background.keep(SWEEPER, partial(self._sweep, stop))

    async def _sweep(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if not self._has_caught_up():
                await asyncio.sleep(BEHIND_S)
                continue
            self._sooner.clear()
            now = datetime.now(UTC)
            due = self._tasks.deadlines.due(now, limit=BATCH)
            if due:
                await asyncio.gather(*map(self._on_due, due))
            else:
                await set_within(self._wait_s(now), self._sooner)

    def _wait_s(self, now: datetime) -> float:
        at = self._tasks.deadlines.next_at()
        return SLEEP_MAX_S if at is None else max(0.0, min(SLEEP_MAX_S, (at - now).total_seconds()))

    def _has_caught_up(self) -> bool:
        age_s = self._tasks.news_age_s()
        if age_s > BEHIND_MAX_S and self._link.connection.unbroken_s() > BEHIND_MAX_S:
            self._background.trouble(SWEEPER, f"the watch of KV {TASKS} is {age_s:.0f} s behind: see the log")
        elif age_s == 0:
            self._background.works(SWEEPER)
        return age_s == 0

    async def _on_due(self, task_id: str) -> None:
        try:
            await self.look(task_id)
        except (TransportUnavailable, WrongRevision) as error:
            # it is due again in a second, here as well as at every other gateway
            log.info("look_retried", task_id=task_id, error=str(error))
        except Exception:
            log.exception("look_failed", task_id=task_id)

    async def look(self, task_id: str) -> Snapshot | None:
        """Reads the record of *task_id*, does what is due, and returns the record afterwards; None without one.

        Raises WrongRevision when another process moved the record meanwhile, TransportUnavailable when the outcome is
        unknown. Both mean: look again.
        """
        now = datetime.now(UTC)
        # from the server: memory may be a moment old, and the worker may have renewed the lease since
        snapshot = await self._tasks.read(task_id)
        if snapshot is None:
            # there is none, or none that this version can read: the board takes it in again when it changes
            self._tasks.deadlines.forget(task_id)
            return None
        action = due_action(
            snapshot.task,
            is_placed=self._tasks.deadlines.is_placed(snapshot.task),
            unbroken_s=self._link.connection.unbroken_s(),
            windows=self._catalog.windows,
            attempts=self._catalog.attempts,
            now=now,
        )
        match action:
            case Leave():
                return snapshot
            case LookAgain(at):
                self._tasks.deadlines.put_off(task_id, at)
                return snapshot
            case Republish():
                return await self._republish(snapshot, now)
            case Reroute():
                with _span("reroute", snapshot.task):
                    return await self._reroute(snapshot, now)
            case Requeue():
                with _span("requeue", snapshot.task):
                    return await self._requeue(snapshot, now)
            case Fail(code, message):
                with _span("expire", snapshot.task):
                    return await self._fail(snapshot, code, message, now)

    async def _republish(self, snapshot: Snapshot, now: datetime) -> Snapshot:
        task = snapshot.task
        try:
            await self._publish(task)
        except StreamFull:
            return await self._fail(snapshot, *_overloaded(task), now)
        self._tasks.deadlines.placed(task)
        return snapshot

    async def _reroute(self, snapshot: Snapshot, now: datetime) -> Snapshot:
        _, decision = self._lanes.route(snapshot.task.model, now, lanes_passed=True)
        wait_s = self._catalog.windows.wait_s("degraded")
        task = lifecycle.reroute(snapshot.task, decision=decision, wait_s=wait_s, now=now)
        moved = await self._store(task, snapshot.revision, now)
        metrics.tasks_rerouted.add(task.model)
        log.warning("task_rerouted", task_id=task.id, decision=decision.outcome)
        moved = await self._place_again(moved, now)
        await remove_leftovers(snapshot.task, link=self._link, artifacts=self._artifacts)
        return moved

    async def _requeue(self, snapshot: Snapshot, now: datetime) -> Snapshot:
        route, decision = self._lanes.route(snapshot.task.model, now)
        wait_s = self._catalog.windows.wait_s(route)
        task = lifecycle.requeue(snapshot.task, route=route, decision=decision, wait_s=wait_s, now=now)
        moved = await self._store(task, snapshot.revision, now)
        current_span().set_attributes(record_lost(snapshot.task, now))
        if lifecycle.was_handed_back(snapshot.task):
            log.info("task_requeued", task_id=task.id, left=snapshot.task.worker, attempt=task.attempt)
        else:
            metrics.tasks_requeued.add(task.model)
            log.warning("task_requeued", task_id=task.id, lost=snapshot.task.worker, attempt=task.attempt)
        return await self._place_again(moved, now)

    async def _place_again(self, moved: Snapshot, now: datetime) -> Snapshot:
        placed = await self._republish(moved, now)
        task = placed.task
        if task.route == "degraded" and task.decision is not None:
            await self._fallbacks.sent(task.model, task.decision, served=0 if task.status.is_terminal else 1)
        return placed

    async def _fail(self, snapshot: Snapshot, code: FailureCode, message: str, now: datetime) -> Snapshot:
        ended = lifecycle.fail(snapshot.task, code=code, message=message, now=now)
        moved = await self._store(ended, snapshot.revision, now)
        record_lost(snapshot.task, now)
        metrics.task_ended(ended)
        failed(current_span(), code.value)
        log.warning("task_failed", task_id=ended.id, code=code.value)
        await remove_leftovers(ended, link=self._link, artifacts=self._artifacts)
        return moved

    async def _store(self, task: GenerationTask, revision: int, now: datetime) -> Snapshot:
        new_revision = await self._link.entries.update(TASKS, task.id, encode_task(task), revision=revision)
        return self._tasks.record(task, new_revision, now)

    async def _publish(self, task: GenerationTask) -> None:
        subject = work_subject(task.route, task.model, task.id)
        stream = work_stream(task.route, task.model)
        message = of_message(task, "publish", stream)
        # the worker that takes it goes on below the root: this gateway's own spans are lost if it is killed (ADR 0036)
        headers = None if task.traceparent is None else {TRACEPARENT: task.traceparent}
        with span(message_name("publish", stream), message, traceparent=_continued(task), kind=PRODUCER):
            await self._link.messages.publish(subject, encode_task(task), message_id=task.message_id, headers=headers)


def _span(name: str, task: GenerationTask) -> contextlib.AbstractContextManager[Span]:
    # another gateway may be faster: that is no failure of this one
    return span(name, of_task(task, worker=task.worker or ""), traceparent=task.traceparent, unless=(WrongRevision,))


def record_lost(task: GenerationTask, now: datetime) -> Attributes:
    """Exports the span of an attempt whose worker is lost and cannot export it itself.

    Returns why the worker is gone, and how many seconds were lost.
    """
    if task.status is not TaskStatus.PROCESSING or task.claimed_at is None:
        return {}
    reason = lifecycle.why_requeued(task)
    if reason == "worker_lost" and task.traceparent is not None:
        stream = work_stream(task.route, task.model)
        record(
            message_name("process", stream),
            task.claimed_at,
            now,
            of_message(task, "process", stream) | of_attempt(task),
            traceparent=task.traceparent,
            kind=CONSUMER,
            error=reason,
            itself=task.attempt_traceparent,
        )
    return {"warmlane.reason": reason, "warmlane.lost_s": round((now - task.claimed_at).total_seconds(), 3)}


def _continued(task: GenerationTask) -> str | None:
    """The parent of the span that sends *task*: the span of what is done to it now, or its root."""
    return traceparent_of(current_span()) or task.traceparent


def _overloaded(task: GenerationTask) -> tuple[FailureCode, str]:
    if task.attempt:
        return FailureCode.WORKER_LOST, "its worker was lost and the queue is full; submit it again"
    return FailureCode.QUEUE_OVERLOADED, "the queue is full; submit it again later"
