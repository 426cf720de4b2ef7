"""Acceptance: publish, timer, record, in that order, so that whatever is killed the task ends exactly once (design §4).

No record without a stored timer; no answer without a record; a refusal leaves nothing behind.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import structlog
import uuid_utils
from msgspec.structs import replace

from contracts import lifecycle
from contracts.fields import SEED_SPAN
from contracts.generation.request import AcceptedRequest
from contracts.settings import Catalog
from contracts.tasks import (
    FailureCode,
    GenerationTask,
    Priority,
    RoutingDecision,
    TaskStatus,
    UnreadableTask,
    decode_task_of,
    encode_task,
    keyed_task_id,
    seed_of,
)
from contracts.topology import DEGRADED_MAX_AGE_S, DEGRADED_MAX_MSGS, TASKS, work_stream, work_subject
from gateway.boards.lane_board import LaneBoard, TaskRoute
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_board import TaskBoard
from gateway.placing.estimate import Estimates
from gateway.placing.fallbacks import Fallbacks
from gateway.placing.hold import Holds, UntilGone, is_held
from gateway.placing.input_images import InputImages
from gateway.placing.leftovers import remove_leftovers
from gateway.placing.retries import until_answered
from ops.artifacts import Artifacts, StorageFailed
from ops.nats.client import Ack
from ops.nats.errors import StreamFull, TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry import metrics
from ops.telemetry.tracing import PRODUCER, TRACEPARENT, message_name, of_message, of_task, span, traceparent_of

# While the queue looks full, the server is not asked again for this long after a refusal: it would refuse again.
FULL_FOR_S: Final = 0.1

log = structlog.get_logger("admission")


class Overloaded(Exception):
    """A limit of the degraded queue was hit. `depth`: it is full, and nothing was written. `wait`: no worker took the
    task *task_id* in time; it has ended, and never ran."""

    def __init__(self, limit: Literal["depth", "wait"], *, retry_after_s: float, task_id: str | None = None) -> None:
        super().__init__(limit)
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.task_id = task_id


class KeyReused(Exception):
    """The Idempotency-Key belongs to another request."""


class Admission:
    """Turns an accepted request into a task."""

    def __init__(
        self,
        *,
        link: NatsLink,
        artifacts: Artifacts,
        tasks: TaskBoard,
        lanes: LaneBoard,
        fallbacks: Fallbacks,
        holds: Holds,
        estimates: Estimates,
        catalog: Catalog,
        require_room: Callable[[], None] = lambda: None,
    ) -> None:
        """*require_room* raises StorageFull where the server has no room for one more request."""
        self._require_room = require_room
        self._link = link
        self._artifacts = artifacts
        self._tasks = tasks
        self._lanes = lanes
        self._fallbacks = fallbacks
        self._holds = holds
        self._estimates = estimates
        self._catalog = catalog
        self._images = InputImages(link=link, artifacts=artifacts, tasks=tasks)
        self._refused_s = -FULL_FOR_S
        """When the server said last that the degraded queue is full."""

    async def accept(
        self,
        request: AcceptedRequest,
        *,
        caller: str,
        key: str | None,
        priority: Priority = Priority.STANDARD,
        traceparent: str | None,
        until_gone: UntilGone | None,
        hold_s: float | None = None,
    ) -> Snapshot:
        """The task of *request*, which its caller may be told; the same one again for the same *caller* and *key*.

        On a lane it comes at once. On the degraded queue it comes when a worker has claimed it; *until_gone* returns
        when the caller hangs up meanwhile. Without *until_gone* it comes at once there too. After *hold_s* it comes as
        it is then, and is promised.
        Raises StorageFull (nothing was written), KeyReused,
        Overloaded, CallerGone, StorageFailed (it will not run), and TransportUnavailable (it may or
        may not run: the same key finds out).
        """
        while True:
            snapshot = await self._submit(
                request,
                caller=caller,
                key=key,
                priority=priority,
                traceparent=traceparent,
                promised=until_gone is None,
            )
            if until_gone is None:
                snapshot = await self._holds.promise(snapshot)
            elif is_held(snapshot.task):
                with span("hold", of_task(snapshot.task)):
                    snapshot = await self._holds.hold(
                        snapshot, is_shared=key is not None, until_gone=until_gone, hold_s=hold_s
                    )
            if _is_overloaded(snapshot.task) and not snapshot.task.promised:
                raise self._overloaded("wait", snapshot.task.model, snapshot.task.id)
            if not snapshot.task.withdrawn:
                return snapshot
            # the other callers of this key had hung up just before this one came

    async def _submit(
        self,
        request: AcceptedRequest,
        *,
        caller: str,
        key: str | None,
        priority: Priority,
        traceparent: str | None,
        promised: bool,
    ) -> Snapshot:
        task_id, known = await self._identify(request, caller, key)
        if known is not None:
            await self._images.complete(known.task, request)
            return known
        self._require_room()
        now = datetime.now(UTC)

        def placed(route: TaskRoute, decision: RoutingDecision) -> GenerationTask:
            task = GenerationTask(
                id=task_id,
                model=request.model,
                caller=caller,
                priority=priority,
                parameters=request.parameters(seed_of(task_id, SEED_SPAN)),
                request_sha256=request.fingerprint,
                status=TaskStatus.PENDING,
                route=route,
                epoch=0,
                decision=decision,
                created_at=now,
                queued_at=now,
                deadline_at=now + timedelta(seconds=self._catalog.windows.wait_s(route)),
                promised=promised or route == "lane",
                replaced=request.replaced,
                traceparent=traceparent,
            )
            detail = f"to {route}.{request.model}{', the queue of its lane is full' if lanes_passed else ''}"
            return lifecycle.with_event(task, "accepted", now, detail)

        lanes_passed = False
        while True:
            with span("route", {"task.id": task_id, "model": request.model}) as current:
                route, decision = self._lanes.route(request.model, now, lanes_passed=lanes_passed)
                current.set_attribute("warmlane.decision", decision.outcome)
            # not for a request with a key, which may be queued already: the server knows its message before it counts
            if key is None and route == "degraded" and self._is_known_full(request.model):
                raise await self._full(request.model, decision)
            task = placed(route, decision)
            try:
                found = await self._publish(task)
                break
            except StreamFull as full:
                if route == "degraded":
                    self._refused_s = time.monotonic()
                    raise await self._full(request.model, decision) from full
                lanes_passed = True
        is_ours = _task_of(found).created_at == task.created_at  # and not an equal request's, which came first
        if is_ours:
            if route == "degraded":
                await self._fallbacks.sent(task.model, decision, served=1)
            metrics.requests_accepted.add(task.model, task.route)
        with span("record", of_task(_task_of(found))):
            snapshot = await self._record_published(found, request, is_ours=is_ours)
        if snapshot.task.was_refused:
            # it ended before we could record it; an image that came after that has nobody to remove it
            await remove_leftovers(snapshot.task, link=self._link, artifacts=self._artifacts)
        if _is_overloaded(snapshot.task):
            raise self._overloaded("wait", snapshot.task.model, snapshot.task.id)
        if is_ours:
            report_replaced(task)
        return snapshot

    def _is_known_full(self, model: str) -> bool:
        return is_known_full(
            waiting=len(self._tasks.work_queues.of("degraded", model).waiting),
            refused_ago_s=time.monotonic() - self._refused_s,
            news_age_s=self._tasks.news_age_s(),
        )

    async def _full(self, model: str, decision: RoutingDecision) -> Overloaded:
        """The refusal of a request for *model* that *decision* sends to the full degraded queue; to be raised."""
        await self._fallbacks.sent(model, decision, served=0)
        return self._overloaded("depth", model)

    async def _identify(self, request: AcceptedRequest, caller: str, key: str | None) -> tuple[str, Snapshot | None]:
        if key is None:
            return str(uuid_utils.uuid7()), None
        n = 0
        while True:
            task_id = keyed_task_id(caller, key, n)
            # of the server, also where one is in memory: that one may be lost (ADR 0030)
            known = await self._tasks.read(task_id)
            if known is None:
                return task_id, None
            if not known.task.was_refused:
                return task_id, _same_request(known, request)
            # a refused key may try again, under another id: the server still remembers the first one as a duplicate
            n += 1

    async def _record_published(
        self, found: GenerationTask | Snapshot, request: AcceptedRequest, *, is_ours: bool
    ) -> Snapshot:
        if isinstance(found, Snapshot):
            known = _same_request(found, request)
            await self._images.complete(known.task, request)
            return known
        if found.request_sha256 != request.fingerprint:
            raise KeyReused
        if found.image_path is not None and request.image_content is not None:
            try:
                await self._artifacts.put(found.image_path, request.image_content)
            except StorageFailed as error:
                return await self._images.refuse(found, error, is_ours=is_ours)
        return await self._record(found, request)

    async def _publish(self, task: GenerationTask) -> GenerationTask | Snapshot:
        """The task as it is queued, or its record where an equal request came first."""
        subject = work_subject(task.route, task.model, task.id)
        stream = work_stream(task.route, task.model)
        message = of_message(task, "publish", stream)
        with span(message_name("publish", stream), message, kind=PRODUCER) as current:
            # whoever works on the task goes on below this span; without an exporter here, below the caller's
            traceparent = traceparent_of(current)
            if traceparent is not None:
                task = replace(task, traceparent=traceparent)
            return await self._published(task, subject)

    async def _published(self, task: GenerationTask, subject: str) -> GenerationTask | Snapshot:
        headers = None if task.traceparent is None else {TRACEPARENT: task.traceparent}
        encoded, tries = encode_task(task), 0

        async def send() -> Ack:
            nonlocal tries
            tries += 1
            try:
                return await self._link.messages.publish(subject, encoded, message_id=task.message_id, headers=headers)
            except StreamFull as full:
                age = datetime.now(UTC) - task.created_at
                if tries > 1 and age >= timedelta(seconds=DEGRADED_MAX_AGE_S):
                    # this process was stopped for so long that the server has forgotten an earlier try, which may
                    # have been stored, and even have run
                    raise TransportUnavailable("the queue is full, and an earlier try was not answered") from full
                raise

        ack = await until_answered(send)
        if not ack.duplicate:
            return task
        known = await self._tasks.read(task.id)
        if known is None:
            # queue time, seed and body are those of the message that won
            stored = await self._link.messages.get(work_stream(task.route, task.model), ack.seq)
            if stored is not None and stored.data:
                try:
                    return decode_task_of(task.id, stored.data)
                except UnreadableTask as error:
                    raise TransportUnavailable(f"the queued message cannot be read: {error}") from error
            # claimed and gone from the queue since we looked: a claim writes the record before it acks
            known = await self._tasks.read(task.id)
        if known is None:
            raise TransportUnavailable("an equal request is queued, but nothing is recorded of it yet")
        return known

    async def _record(self, task: GenerationTask, request: AcceptedRequest) -> Snapshot:
        encoded = encode_task(task)
        await until_answered(lambda: self._link.timers.set("admit", task.id, task.deadline_at, encoded))

        async def create() -> Snapshot | None:
            try:
                revision = await self._link.entries.create(TASKS, task.id, encoded)
            except WrongRevision:
                # a worker was faster, an equal request was, or our own create had succeeded unseen
                return await self._tasks.read(task.id)
            return self._tasks.record(task, revision, datetime.now(UTC))

        known = await until_answered(create)
        if known is None:
            raise TransportUnavailable("the record exists but cannot be read")
        return _same_request(known, request)

    def _overloaded(self, limit: Literal["depth", "wait"], model: str, task_id: str | None = None) -> Overloaded:
        """To be raised, and counted by that."""
        retry_after_s = self._estimates.retry_after_s(model, datetime.now(UTC))
        metrics.requests_overloaded.add(model, limit)
        return Overloaded(limit, retry_after_s=retry_after_s, task_id=task_id)


def is_known_full(*, waiting: int, refused_ago_s: float, news_age_s: float) -> bool:
    """Whether the server, if it was asked again so soon, would say once more that the degraded queue is full. Pure.

    It said so *refused_ago_s* ago, and since then none of the *waiting* tasks was seen to leave; a place that becomes
    free is noticed when the record of its task arrives. What is refused by that costs a busy server nothing.
    """
    return refused_ago_s < FULL_FOR_S and waiting >= DEGRADED_MAX_MSGS and not news_age_s


def _task_of(found: GenerationTask | Snapshot) -> GenerationTask:
    return found.task if isinstance(found, Snapshot) else found


def _is_overloaded(task: GenerationTask) -> bool:
    return task.was_refused and task.error is not None and task.error.code is FailureCode.QUEUE_OVERLOADED


def report_replaced(task: GenerationTask) -> None:
    """Counts and tells what was replaced in *task*: numbers alone, and whose request it was."""
    for each in task.replaced:
        metrics.parameters_reported.add(task.model, each.field)
    if task.replaced:
        fields = {each.field: {"got": each.got, "used": each.used} for each in task.replaced}
        log.info("parameters_reported", task_id=task.id, caller=task.caller, model=task.model, fields=fields)


def _same_request(known: Snapshot, request: AcceptedRequest) -> Snapshot:
    if known.task.request_sha256 != request.fingerprint:
        raise KeyReused
    return known
