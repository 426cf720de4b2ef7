"""How much longer the tasks that run will probably take, by the measured service times."""

from datetime import datetime, timedelta

from contracts.tasks import GenerationTask
from gateway.boards.work_queues import WorkQueue, WorkQueues


def remaining_s(queues: WorkQueues, queue: WorkQueue, now: datetime) -> list[float]:
    """The seconds that each task that runs from *queue* has left, none below 0."""

    def service_s(task: GenerationTask) -> float:
        # callers use this only where something was measured on the queue, and then each of its models has a figure
        return queues.service_s(task.route, task.model) or 0.0

    return [
        max(0.0, service_s(task) - seconds(now - task.claimed_at))
        for task in queue.running
        if task.claimed_at is not None
    ]


def seconds(span: timedelta) -> float:
    """*span* in seconds."""
    return span.total_seconds()
