"""Which task gives up its place on a full degraded queue, and to which request (ADR 0039). Pure: no clock, no I/O, no
logging."""

from collections.abc import Collection, Iterable

from contracts.tasks import GenerationTask, Priority, TaskStatus


def may_be_displaced(task: GenerationTask, arrival: Priority) -> bool:
    """Whether a request of the class *arrival* may take the place of *task*.

    1. It waits on the degraded queue. A task that a worker has claimed, or that has ended, never loses its place.
    2. Its class is lower than that of the arrival.
    3. It came to this queue at first, and was not moved there. A task that no lane took in time has waited as long once
       already, and a task whose worker was lost has run.
    """
    if task.status is not TaskStatus.PENDING or task.route != "degraded":  # 1
        return False
    return task.priority.rank > arrival.rank and task.epoch == 0  # 2, 3


def displaced(
    waiting: Iterable[GenerationTask], arrival: Priority, *, passed: Collection[str] = ()
) -> GenerationTask | None:
    """Which of those *waiting* gives up its place to a request of the class *arrival*; None where none does.

    It is the newest task of the lowest class that may be displaced, since it has waited the least. Tasks whose ids are
    in *passed* were asked before and are not asked again.
    """
    able = (task for task in waiting if may_be_displaced(task, arrival) and task.id not in passed)
    return max(able, key=lambda task: (task.priority.rank, task.queued_at, task.id), default=None)
