"""The limits of the degraded queue, as a request meets them: the queue is full, or no worker took the task in time."""

import time
from datetime import UTC, datetime
from typing import Final, Literal

from contracts.api.problems import OverloadLimit
from contracts.tasks import FailureCode, GenerationTask, Priority
from contracts.topology import DEGRADED_MAX_MSGS
from gateway.boards.task_board import TaskBoard
from gateway.placing.estimate import Estimates
from ops.telemetry import metrics

# While the queue looks full, the server is not asked again for this long after a refusal: it would refuse again.
FULL_FOR_S: Final = 0.1


class Overloaded(Exception):
    """A limit of the degraded queue was hit.

    `depth`: the queue is full; `expected`: no worker will be free in time. In both cases nothing was written. `wait`:
    no worker took the task *task_id* in time; `displaced`: another task took its place. In both cases it has ended, and
    never ran.
    """

    def __init__(self, limit: OverloadLimit, *, retry_after_s: float, task_id: str | None = None) -> None:
        super().__init__(limit)
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.task_id = task_id


def is_overloaded(task: GenerationTask) -> bool:
    """Whether *task* ended as `queue_overloaded`, without having run."""
    return task.was_refused and task.error is not None and task.error.code is FailureCode.QUEUE_OVERLOADED


def is_known_full(*, waiting: int, refused_ago_s: float, news_age_s: float) -> bool:
    """Whether the server, if it was asked again so soon, would say again that the degraded queue is full. Pure.

    The server said so *refused_ago_s* ago, and since then none of the *waiting* tasks was seen to leave. A gateway
    notices a free place when the record of its task arrives. A refusal without asking costs a busy server nothing.
    """
    return refused_ago_s < FULL_FOR_S and waiting >= DEGRADED_MAX_MSGS and not news_age_s


class Overload:
    """Makes the refusals of one gateway, and counts them."""

    def __init__(self, *, tasks: TaskBoard, estimates: Estimates) -> None:
        self._tasks = tasks
        self._estimates = estimates
        self._refused_s = -FULL_FOR_S
        """When the server last said that the degraded queue is full."""

    def is_known_full(self, model: str) -> bool:
        """Whether a task of *model* need not be offered to the degraded queue: the server has just refused one."""
        return is_known_full(
            waiting=len(self._tasks.work_queues.of("degraded", model).waiting),
            refused_ago_s=time.monotonic() - self._refused_s,
            news_age_s=self._tasks.news_age_s(),
        )

    def note_refused(self) -> None:
        """The server has just said that the degraded queue is full."""
        self._refused_s = time.monotonic()

    def refused(self, limit: Literal["depth", "expected"], model: str, priority: Priority) -> Overloaded:
        """The error for a request for *model* that the degraded queue did not take."""
        self._tasks.recent.refused(model, datetime.now(UTC))
        return self._overloaded(limit, model, priority)

    def late(self, task: GenerationTask) -> Overloaded:
        """The error for *task*, which no worker took in time, or which was displaced."""
        limit: OverloadLimit = "wait" if task.displaced_by is None else "displaced"
        return self._overloaded(limit, task.model, task.priority, task.id)

    def _overloaded(
        self, limit: OverloadLimit, model: str, priority: Priority, task_id: str | None = None
    ) -> Overloaded:
        retry_after_s = self._estimates.retry_after_s(model, datetime.now(UTC), priority=priority)
        metrics.requests_overloaded.add(model, limit)
        return Overloaded(limit, retry_after_s=retry_after_s, task_id=task_id)
