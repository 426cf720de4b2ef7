"""Cancelling a task on request."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask, TaskStatus
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_board import TaskBoard
from gateway.placing.leftovers import remove_leftovers
from ops.artifacts import Artifacts
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink
from ops.nats.records import Change
from ops.telemetry import metrics
from ops.telemetry.tracing import current_span, failed, link_to, of_task, span


async def cancel(
    task_id: str, *, link: NatsLink, tasks: TaskBoard, artifacts: Artifacts, require: Callable[[int], None]
) -> Snapshot | None:
    """Ends a task that waits or runs as failed with the code `cancelled`; one that has ended stays as it is.

    Returns the task as it ended; None where it has no record. *require* is called with each revision that would be
    changed, and raises where it must not be changed. Raises TransportUnavailable: the task may or may not be cancelled.
    """

    def cancelled(task: GenerationTask, revision: int) -> GenerationTask | None:
        require(revision)
        if task.status.is_terminal:
            return None
        current_span().set_attributes({"task.id": task.id, "model": task.model})
        link_to(task.traceparent)
        return lifecycle.fail(task, code=FailureCode.CANCELLED, message="cancelled on request", now=datetime.now(UTC))

    return await end_task(task_id, cancelled, link=link, tasks=tasks, artifacts=artifacts)


async def end_task(
    task_id: str, change: Change, *, link: NatsLink, tasks: TaskBoard, artifacts: Artifacts
) -> Snapshot | None:
    """The task after *change*, which ends it or leaves it as it is; None where it has no record. This removes what a
    task that waited leaves behind. Raises TransportUnavailable."""
    moved = await tasks.move(task_id, change, around=_cancelling)
    if moved is None:
        return None
    if moved.before is not None:
        metrics.task_ended(moved.task)
        if moved.before.status is TaskStatus.PENDING:
            await remove_leftovers(moved.task, link=link, artifacts=artifacts)
    return Snapshot(moved.task, moved.revision)


@contextmanager
def _cancelling(task: GenerationTask) -> Iterator[None]:
    with span("cancel", of_task(task), traceparent=task.traceparent, unless=(WrongRevision,)) as current:
        yield
        failed(current, FailureCode.CANCELLED.value)
