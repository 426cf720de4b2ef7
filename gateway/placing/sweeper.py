"""Due timers: looks at the record of each, and does what `due.py` says. Any number of gateways share the work."""

import asyncio
import contextlib
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog
from nats.aio.msg import Msg
from opentelemetry.trace import Span

from contracts import lifecycle
from contracts.settings import Catalog
from contracts.tasks import (
    FailureCode,
    GenerationTask,
    TaskStatus,
    UnreadableRecord,
    UnreadableTask,
    decode_task_of,
    encode_task,
    may_be_newer,
)
from contracts.topology import (
    DEADLINES,
    TASKS,
    TIMER_KINDS,
    TimerKind,
    is_token,
    sweep_consumer,
    work_stream,
    work_subject,
)
from gateway.boards.lane_board import LaneBoard
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_board import TaskBoard
from gateway.placing.fallbacks import Fallbacks
from gateway.placing.leftovers import remove_leftovers
from gateway.rules.due import Fail, Forget, RecordAsRefused, Republish, Requeue, Reroute, SetTimer, due_action
from ops.artifacts import Artifacts
from ops.background import Background
from ops.nats.errors import StreamFull, TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.nats.pull import Pull
from ops.telemetry import metrics
from ops.telemetry.seldom import Seldom
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
from ops.telemetry.unreadable import unreadables

SWEEPER: Final = "sweeper"
BATCH: Final = 64
# Soon enough for a gateway that can read it, where only some are of the newer version.
LEFT_S: Final = 5.0
# For two clocks that differ a little.
EXPIRY_MARGIN_S: Final = 1.0

log = structlog.get_logger("sweeper")


class Sweeper:
    """The effects of a due timer. A timer of a task that has not ended is acked only after another is stored."""

    def __init__(
        self,
        *,
        link: NatsLink,
        artifacts: Artifacts,
        tasks: TaskBoard,
        lanes: LaneBoard,
        fallbacks: Fallbacks,
        catalog: Catalog,
        keep_s: float,
        background: Background,
    ) -> None:
        """*keep_s* is how long the server keeps a record after its last change."""
        self._background = background
        self._link = link
        self._artifacts = artifacts
        self._tasks = tasks
        self._lanes = lanes
        self._fallbacks = fallbacks
        self._catalog = catalog
        self._keep_s = keep_s
        self._seldom = Seldom()

    async def run(self, stop: asyncio.Event) -> None:
        """Handles due timers until *stop* is set."""
        async with asyncio.TaskGroup() as group:
            for kind in TIMER_KINDS:
                group.create_task(self._background.keep(f"{SWEEPER} {kind}", partial(self._sweep, kind, stop)))

    async def _sweep(self, kind: TimerKind, stop: asyncio.Event) -> None:
        pull, name = await self._pull(kind), f"{SWEEPER} {kind}"
        try:
            while not stop.is_set():
                messages = await pull.fetch(BATCH)
                if pull.trouble is None:
                    self._background.works(name)
                else:
                    self._background.trouble(name, pull.trouble)
                await asyncio.gather(*(self._on_due(message) for message in messages))
        finally:
            await pull.close()

    async def _pull(self, kind: TimerKind) -> Pull:
        while True:
            try:
                return await self._link.messages.pull(DEADLINES, sweep_consumer(kind))
            except TransportUnavailable as error:
                # without a sweeper no timer is ever served: this one does not give up
                self._seldom.log(log.warning, "sweeper_waits", kind=kind, error=str(error))
                await asyncio.sleep(0.5)

    async def _on_due(self, message: Msg) -> None:
        task_id = message.subject.rsplit(".", 1)[-1]
        try:
            if not is_token(task_id):
                raise UnreadableTask("its subject names no task")
            await self.look(task_id, message.data)
        except UnreadableTask as error:
            await self._on_unreadable(message, task_id, error)
            return
        except (TransportUnavailable, WrongRevision) as error:
            # not acked: the timer comes again in a second, to this gateway or another
            log.info("timer_retried", task_id=task_id, error=str(error))
            return
        except Exception:
            log.exception("timer_failed", task_id=task_id)
            return
        with contextlib.suppress(Exception):
            await message.ack()

    async def _on_unreadable(self, message: Msg, task_id: str, error: UnreadableTask) -> None:
        """What a newer version may have written is left for a gateway of that version; the stream drops it in a day."""
        unreadables.report("timer", message.subject, error, revision=message.metadata.sequence.stream)
        is_left = isinstance(error, UnreadableRecord) or may_be_newer(task_id, message.data)
        with contextlib.suppress(Exception):
            await (message.nak(delay=LEFT_S) if is_left else message.term())

    async def look(self, task_id: str, payload: bytes | None = None) -> Snapshot | None:
        """Reads the record of *task_id*, does what is due, and returns the record afterwards.

        *payload* is the timer's content, the task as it was queued. Raises WrongRevision when somebody else moved
        the record meanwhile, TransportUnavailable when nobody knows; both mean: look again. Raises UnreadableTask when
        there is no record, and nothing in *payload* of which one could be made.
        """
        now = datetime.now(UTC)
        snapshot = await self._tasks.read(task_id)
        action = due_action(
            snapshot.task if snapshot else None,
            unbroken_s=self._link.connection.unbroken_s(),
            windows=self._catalog.windows,
            attempts=self._catalog.attempts,
            now=now,
        )
        if snapshot is None:
            return await self._record_as_refused(task_id, payload, now) if payload is not None else None
        match action:
            case Forget() | RecordAsRefused():
                return snapshot
            case SetTimer(kind, at):
                await self._link.timers.set(kind, task_id, at, encode_task(snapshot.task))
                return snapshot
            case Republish(at):
                return await self._republish(snapshot, at, now)
            case Reroute():
                with _span("reroute", snapshot.task):
                    return await self._reroute(snapshot, now)
            case Requeue():
                with _span("requeue", snapshot.task):
                    return await self._requeue(snapshot, now)
            case Fail(code, message):
                with _span("expire", snapshot.task):
                    return await self._fail(snapshot, code, message, now)

    async def _record_as_refused(self, task_id: str, payload: bytes, now: datetime) -> Snapshot | None:
        """The new record; None where one was there and deleted, or may have been and expired: timers can be so late."""
        task = decode_task_of(task_id, payload)
        if task.status.is_terminal:
            raise UnreadableTask("a task that has ended, and has no record - at `$.status`")
        if (now - task.queued_at).total_seconds() >= self._keep_s - EXPIRY_MARGIN_S:
            # There was a record, most likely, and the server has dropped it by age: what had ended as `done` must not
            # come back as refused. A record that was never written would be gone by now as well.
            return None
        refused = lifecycle.fail(
            task, code=FailureCode.QUEUE_OVERLOADED, message="it was never recorded; submit it again", now=now
        )
        try:
            revision = await self._link.entries.create(TASKS, task_id, encode_task(refused))
        except WrongRevision:
            if await self._tasks.read(task_id) is None:
                reason = await self._why_unreadable(task_id)
                if reason is None:
                    return None
                raise reason from None
            raise
        # at once: what is taken in later may be from before the bucket was read once more (ADR 0030)
        recorded = self._tasks.record(refused, revision, now)
        metrics.task_ended(refused)
        await remove_leftovers(refused, link=self._link, artifacts=self._artifacts)
        return recorded

    async def _why_unreadable(self, task_id: str) -> Exception | None:
        """None where a deletion marker stands: somebody deleted the record, and the task with it."""
        entry = await self._link.entries.get(TASKS, task_id)
        if entry is None:
            return WrongRevision(task_id)  # it expired meanwhile
        if entry.value is None:
            return None
        text = "the record of its task cannot be read"
        return UnreadableRecord(text) if may_be_newer(task_id, entry.value) else UnreadableTask(text)

    async def _republish(self, snapshot: Snapshot, at: datetime, now: datetime) -> Snapshot:
        task = snapshot.task
        try:
            await self._publish(task)
        except StreamFull:
            return await self._fail(snapshot, *_overloaded(task), now)
        await self._link.timers.set("admit", task.id, at, encode_task(task))
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
        placed = await self._republish(moved, moved.task.deadline_at, now)
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
        # whoever takes it goes on below the root: this gateway's own spans are lost where it is killed (ADR 0036)
        headers = None if task.traceparent is None else {TRACEPARENT: task.traceparent}
        with span(message_name("publish", stream), message, traceparent=_continued(task), kind=PRODUCER):
            await self._link.messages.publish(subject, encode_task(task), message_id=task.message_id, headers=headers)


def _span(name: str, task: GenerationTask) -> contextlib.AbstractContextManager[Span]:
    # another gateway may be faster: that is no failure of this one
    return span(name, of_task(task, worker=task.worker or ""), traceparent=task.traceparent, unless=(WrongRevision,))


def record_lost(task: GenerationTask, now: datetime) -> Attributes:
    """Tells the span of the attempt that ended with its worker, whose own it would have been. Returns why there is no
    worker any more, and what was lost."""
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
    """What the sending of *task* is below: what is done to it now, or its root."""
    return traceparent_of(current_span()) or task.traceparent


def _overloaded(task: GenerationTask) -> tuple[FailureCode, str]:
    if task.attempt:
        return FailureCode.WORKER_LOST, "its worker was lost and the queue is full; submit it again"
    return FailureCode.QUEUE_OVERLOADED, "the queue is full; submit it again later"
