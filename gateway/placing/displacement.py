"""A request of a higher class takes the place of a waiting one of a lower class, where the degraded queue is full and
the settings allow it (ADR 0039). `gateway/rules/displacement.py` decides."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask
from gateway.boards.task_board import TaskBoard
from gateway.placing.leftovers import remove_image, remove_message
from gateway.placing.retries import until_answered
from gateway.rules.displacement import displaced, may_be_displaced
from ops.artifacts import Artifacts
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry import metrics
from ops.telemetry.tracing import failed, of_task, span

# A request displaces so many tasks at most: another request may take a place that it has freed.
DISPLACED_MAX: Final = 3

log = structlog.get_logger("displacement")


class Displacement:
    """Makes room on the full degraded queue, where it *is_on*."""

    def __init__(self, *, link: NatsLink, artifacts: Artifacts, tasks: TaskBoard, is_on: bool) -> None:
        self._link = link
        self._artifacts = artifacts
        self._tasks = tasks
        self._is_on = is_on

    async def make_room(self, arrival: GenerationTask) -> GenerationTask | None:
        """The task that was displaced for *arrival*, once its message is out of the queue; None where none may be
        displaced.

        1. Its record moves by compare-and-set: only one of several gateways displaces it, and none does if a worker
           came first.
        2. Then its message is removed, and the queue has a place. Another request may take that.
        3. The gateway that holds its caller sees the record, and answers.

        Raises TransportUnavailable: then the task may have ended, and its place may stay taken until the server drops
        the message by age.
        """
        if not self._is_on:
            return None
        passed: set[str] = set()
        while True:
            waiting = self._tasks.work_queues.of("degraded", arrival.model).waiting
            chosen = displaced(waiting, arrival.priority, passed=passed)
            if chosen is None:
                return None
            passed.add(chosen.id)
            ended = await self._displace(chosen, arrival)
            if ended is not None:
                return ended

    async def _displace(self, chosen: GenerationTask, arrival: GenerationTask) -> GenerationTask | None:
        def change(task: GenerationTask, _: int) -> GenerationTask | None:
            if not may_be_displaced(task, arrival.priority):
                return None
            return lifecycle.displace(task, by=arrival, now=datetime.now(UTC))

        moved = await self._tasks.move(chosen.id, change, around=_displacing)  # 1
        if moved is None or moved.before is None:
            return None  # it was claimed, or it ended, just before
        metrics.task_ended(moved.task)
        metrics.tasks_displaced.add(moved.task.model, moved.task.priority.value)
        log.info("task_displaced", task_id=moved.task.id, by=arrival.id, priority=arrival.priority.value)
        await until_answered(partial(remove_message, moved.task, link=self._link))  # 2
        await remove_image(moved.task, artifacts=self._artifacts)
        return moved.task


@contextmanager
def _displacing(task: GenerationTask) -> Iterator[None]:
    with span("displace", of_task(task), traceparent=task.traceparent, unless=(WrongRevision,)) as current:
        yield
        failed(current, FailureCode.QUEUE_OVERLOADED.value)
