"""Acceptance: publish, timer, record, in that order, so that whatever is killed the task ends exactly once (design §4).

No record without a stored timer; no answer without a record; a refusal leaves nothing behind.
"""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import stamina
import structlog
import uuid_utils.compat

from contracts import lifecycle
from contracts.generation import AcceptedRequest
from contracts.settings import SEED_SPAN, Catalog
from contracts.tasks import (
    FailureCode,
    GenerationTask,
    TaskStatus,
    UnreadableTask,
    decode_task,
    encode_task,
    keyed_task_id,
    seed_of,
)
from contracts.topology import TASKS, work_stream, work_subject
from gateway.lane_board import LaneBoard
from gateway.routing import FallbackCause, ToDegraded
from gateway.task_board import Snapshot, TaskBoard
from ops.artifacts import Artifacts, StorageFailed
from ops.nats_link import NatsLink, TransportUnavailable, WrongRevision

RETRY_S: Final = 5.0
# An unknown outcome is retried with the same id, which the server recognises as a duplicate (design §4, Accept 2).
_until_answered = partial(
    stamina.retry_context,
    on=TransportUnavailable,
    attempts=None,
    timeout=RETRY_S,
    wait_initial=0.05,
    wait_max=1.0,
    wait_jitter=0.05,
)

log = structlog.get_logger("admission")


class NoLane(Exception):
    """No warm lane takes the model, and there is no degraded worker."""

    def __init__(self, model: str, cause: FallbackCause) -> None:
        super().__init__(f"no warm lane serves {model} ({cause})")
        self.model = model
        self.cause = cause


class KeyReused(Exception):
    """The Idempotency-Key belongs to another request."""


class Admission:
    """Turns an accepted request into a task."""

    def __init__(
        self, *, link: NatsLink, artifacts: Artifacts, tasks: TaskBoard, lanes: LaneBoard, catalog: Catalog
    ) -> None:
        self._link = link
        self._artifacts = artifacts
        self._tasks = tasks
        self._lanes = lanes
        self._catalog = catalog

    async def submit(
        self, request: AcceptedRequest, *, caller: str, key: str | None, traceparent: str | None
    ) -> Snapshot:
        """The recorded task of *request*; the same one again for the same *caller* and *key*.

        Raises KeyReused, NoLane, StreamFull (nothing was written), StorageFailed (it will not run), and
        TransportUnavailable (it may or may not run: the same key finds out).
        """
        task_id, known = await self._identify(request, caller, key)
        if known is not None:
            return known
        now = datetime.now(UTC)
        outcome, decision = self._lanes.route(request.model, now)
        if isinstance(outcome, ToDegraded):
            raise NoLane(request.model, outcome.cause)
        task = GenerationTask(
            id=task_id,
            model=request.model,
            caller=caller,
            parameters=request.parameters(seed_of(task_id, SEED_SPAN)),
            request_sha256=request.fingerprint,
            status=TaskStatus.PENDING,
            route="lane",
            epoch=0,
            decision=decision,
            created_at=now,
            queued_at=now,
            deadline_at=now + timedelta(seconds=self._catalog.windows.wait_limit_s),
            traceparent=traceparent,
        )
        task = lifecycle.with_event(task, "accepted", now)
        return await self._accept(task, request)

    async def _identify(self, request: AcceptedRequest, caller: str, key: str | None) -> tuple[str, Snapshot | None]:
        if key is None:
            return str(uuid_utils.compat.uuid7()), None
        n = 0
        while True:
            task_id = keyed_task_id(caller, key, n)
            known = await self._tasks.get(task_id)
            if known is None:
                return task_id, None
            if not _was_refused(known.task):
                return task_id, _same_request(known, request)
            # a refused key may try again, under another id: the server still remembers the first one as a duplicate
            n += 1

    async def _accept(self, task: GenerationTask, request: AcceptedRequest) -> Snapshot:
        found = await self._publish(task)
        if isinstance(found, Snapshot):
            return _same_request(found, request)
        if found.request_sha256 != request.fingerprint:
            raise KeyReused
        if found.image_path is not None and request.image_content is not None:
            try:
                await self._artifacts.put(found.image_path, request.image_content)
            except StorageFailed as error:
                return await self._withdraw(found, error)
        return await self._record(found, request)

    async def _publish(self, task: GenerationTask) -> GenerationTask | Snapshot:
        """The task as it is queued, or its record where an equal request came first."""
        subject = work_subject(task.route, task.model, task.id)
        async for attempt in _until_answered():
            with attempt:
                ack = await self._link.publish(subject, encode_task(task), message_id=task.message_id)
        if not ack.duplicate:
            return task
        known = await self._tasks.read(task.id)
        if known is None:
            # queue time, seed and body are those of the message that won
            stored = await self._link.stored_message(work_stream(task.route, task.model), ack.seq)
            if stored is not None and stored.data:
                try:
                    return decode_task(stored.data)
                except UnreadableTask as error:
                    raise TransportUnavailable(f"the queued message cannot be read: {error}") from error
            # claimed and gone from the queue since we looked: a claim writes the record before it acks
            known = await self._tasks.read(task.id)
        if known is None:
            raise TransportUnavailable("an equal request is queued, but nothing is recorded of it yet")
        return known

    async def _record(self, task: GenerationTask, request: AcceptedRequest) -> Snapshot:
        encoded = encode_task(task)
        async for attempt in _until_answered():
            with attempt:
                await self._link.set_timer("admit", task.id, task.deadline_at, encoded)
        async for attempt in _until_answered():
            with attempt:
                try:
                    revision = await self._link.create(TASKS, task.id, encoded)
                    return self._tasks.record(task, revision, datetime.now(UTC))
                except WrongRevision:
                    # a worker was faster, an equal request was, or our own create had succeeded unseen
                    known = await self._tasks.read(task.id)
        if known is None:
            raise TransportUnavailable("the record exists but cannot be read")
        return _same_request(known, request)

    async def _withdraw(self, task: GenerationTask, error: StorageFailed) -> Snapshot:
        """The image could not be stored: a terminal record fences the message off, then both answers are honest."""
        log.error("image_not_stored", task_id=task.id, error=str(error))
        failed = lifecycle.fail(
            task, code=FailureCode.STORAGE_FAILED, message="the input image could not be stored", now=datetime.now(UTC)
        )
        try:
            await self._link.create(TASKS, task.id, encode_task(failed))
        except WrongRevision:
            known = await self._tasks.read(task.id)
            if known is not None:
                return known
        await self._link.remove_subject(
            work_stream(task.route, task.model), work_subject(task.route, task.model, task.id)
        )
        raise error


def _was_refused(task: GenerationTask) -> bool:
    return (
        task.error is not None
        and task.attempt == 0
        and task.error.code in (FailureCode.QUEUE_OVERLOADED, FailureCode.STORAGE_FAILED)
    )


def _same_request(known: Snapshot, request: AcceptedRequest) -> Snapshot:
    if known.task.request_sha256 != request.fingerprint:
        raise KeyReused
    return known
