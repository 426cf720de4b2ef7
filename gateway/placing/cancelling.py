"""Cancelling a task on request."""

from collections.abc import Callable
from datetime import UTC, datetime

from contracts import lifecycle
from contracts.tasks import FailureCode, TaskStatus, encode_task
from contracts.topology import TASKS
from gateway.boards.task_board import Snapshot, TaskBoard
from gateway.placing.leftovers import remove_leftovers
from ops.artifacts import Artifacts
from ops.nats.link import NatsLink, WrongRevision
from ops.telemetry import metrics
from ops.telemetry.tracing import current_span, failed, link_to, of_task, span


async def cancel(
    task_id: str, *, link: NatsLink, tasks: TaskBoard, artifacts: Artifacts, require: Callable[[int], None]
) -> Snapshot | None:
    """Ends a task that waits or runs as failed with the code `cancelled`; one that has ended stays as it is.

    Returns how it ended; None where it has no record. *require* is called with each revision that would be changed,
    and raises where that must not be. Raises TransportUnavailable: it may be cancelled or not.
    """
    while True:
        snapshot = await tasks.read(task_id)
        if snapshot is None:
            return None
        require(snapshot.revision)
        task = snapshot.task
        if task.status.is_terminal:
            return snapshot
        now = datetime.now(UTC)
        cancelled = lifecycle.fail(task, code=FailureCode.CANCELLED, message="cancelled on request", now=now)
        current_span().set_attributes({"task.id": task.id, "model": task.model})
        link_to(task.traceparent)
        try:
            with span("cancel", of_task(task), traceparent=task.traceparent, unless=(WrongRevision,)) as current:
                revision = await link.update(TASKS, task_id, encode_task(cancelled), revision=snapshot.revision)
                failed(current, FailureCode.CANCELLED.value)
        except WrongRevision:
            continue  # it moved meanwhile: look again
        snapshot = tasks.record(cancelled, revision, now)
        metrics.task_ended(cancelled)
        if task.status is TaskStatus.PENDING:
            await remove_leftovers(cancelled, link=link, artifacts=artifacts)
        return snapshot
