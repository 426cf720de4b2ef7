"""The writes by which a task comes into being, in their order: queue message, record (design §4).

Each of them can be repeated: the server, or the record that is there, shows what an earlier try has done.
"""

from datetime import UTC, datetime, timedelta

from contracts.tasks import GenerationTask, UnreadableTask, decode_task_of, encode_task
from contracts.topology import DEGRADED_MAX_AGE_S, work_stream, work_subject
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_board import TaskBoard
from gateway.placing.retries import until_answered
from ops.nats.client import Ack
from ops.nats.errors import StreamFull, TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry.tracing import PRODUCER, TRACEPARENT, message_name, of_message, of_task, send_root, span


class Queueing:
    """Queues and records the tasks that this gateway accepts."""

    def __init__(self, *, link: NatsLink, tasks: TaskBoard) -> None:
        self._link = link
        self._tasks = tasks

    async def publish(self, task: GenerationTask) -> GenerationTask | Snapshot:
        """Queues *task*. Returns the task as it is queued, or its record where an equal request came first.

        Raises StreamFull: nothing was stored. Raises TransportUnavailable: it may be queued or not.
        """
        subject = work_subject(task.route, task.model, task.id)
        stream = work_stream(task.route, task.model)
        message = of_message(task, "publish", stream)
        await send_root(of_task(task))  # from here on, others may add to its trace
        with span(message_name("publish", stream), message, kind=PRODUCER):
            ack = await self._send(task, subject)
            return await self._queued_before(task, stream, ack) if ack.duplicate else task

    async def _send(self, task: GenerationTask, subject: str) -> Ack:
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

        return await until_answered(send)

    async def _queued_before(self, task: GenerationTask, stream: str, ack: Ack) -> GenerationTask | Snapshot:
        """What an equal request had queued before *task*. The queue time, seed and body of that message count."""
        known = await self._tasks.read(task.id)
        if known is not None:
            return known
        stored = await self._link.messages.get(stream, ack.seq)
        if stored is not None and stored.data:
            try:
                return decode_task_of(task.id, stored.data)
            except UnreadableTask as error:
                raise TransportUnavailable(f"the queued message cannot be read: {error}") from error
        # claimed and gone from the queue since then: a worker that claims writes the record before it acks
        known = await self._tasks.read(task.id)
        if known is None:
            raise TransportUnavailable("an equal request is queued, but nothing is recorded of it yet")
        return known

    async def record(self, task: GenerationTask) -> Snapshot:
        """Writes the record of *task*, which is queued. Returns the record as it is then.

        Raises TransportUnavailable: it may be recorded or not.
        """

        async def create() -> Snapshot | None:
            try:
                return await self._tasks.create(task)
            except WrongRevision:
                # a worker or an equal request was faster, or an earlier try of this create succeeded without an answer
                return await self._tasks.read(task.id)

        known = await until_answered(create)
        if known is None:
            raise TransportUnavailable("the record exists but cannot be read")
        return known
