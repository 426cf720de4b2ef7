"""How long a task will wait, and when another try makes sense: from measured service times (design §9).

The functions are pure; `Estimates` asks the boards for what they need.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Literal

from msgspec import Struct

from contracts.api.tasks import QueuePlace
from contracts.settings import Catalog
from contracts.tasks import GenerationTask, TaskStatus
from contracts.topology import DEGRADED_MAX_MSGS
from gateway.boards.lane_board import LaneBoard
from gateway.boards.work_queues import WorkQueue, WorkQueues
from gateway.rules.routing import READY_STATES

RETRY_UNMEASURED_S: Final = 5.0
RETRY_MIN_S: Final = 1.0
# One answer serves everybody for this long: it is in whole seconds, and a busy gateway gives thousands of them.
RETRY_KEPT_S: Final = 0.1


class Ahead(Struct, frozen=True):
    """A task that goes first: it will take *service_s*, unless nobody takes it within *left_s*."""

    service_s: float
    left_s: float


def lane_wait_s(ahead: int, *, service_s: float, remaining_s: Sequence[float], lanes: int) -> float:
    """The wait behind *ahead* tasks of *service_s* each, on *lanes* that each take the next task when they are free.

    *remaining_s* has one entry for each lane that works now, none longer than *service_s*.
    """
    workers = max(lanes, len(remaining_s), 1)  # what runs proves a lane
    free_s = sorted([*remaining_s, *[0.0] * (workers - len(remaining_s))])
    return ahead // workers * service_s + free_s[ahead % workers]


def degraded_wait_s(ahead: Sequence[Ahead], *, remaining_s: float) -> float:
    """The wait behind *ahead* on the one degraded worker, which is free in *remaining_s*.

    A task that it cannot take in time gives up, and costs nothing.
    """
    free_s = remaining_s
    for task in ahead:
        if free_s <= task.left_s:
            free_s += task.service_s
    return free_s


def retry_after_s(*, running_s: float, waiting_s: float, place_free_s: float, wait_s: float) -> float:
    """When a new request would be taken within *wait_s*, if nobody else came, in seconds from now; at least 1 s.

    The worker is free in *running_s*; those that wait need *waiting_s*, as if none gave up: under overload, others do
    come. They delay it by at most *wait_s*, for by then they are gone. The queue has room in *place_free_s*.
    """
    return max(RETRY_MIN_S, place_free_s, running_s - wait_s, min(wait_s, running_s + waiting_s - wait_s))


class Estimates:
    """The estimates of one gateway, from what its boards hold."""

    def __init__(self, *, queues: WorkQueues, lanes: LaneBoard, catalog: Catalog) -> None:
        self._queues = queues
        self._lanes = lanes
        self._windows = catalog.windows
        self._answered: dict[str, tuple[datetime, float]] = {}

    def place(self, task: GenerationTask, now: datetime) -> QueuePlace | None:
        """Where *task* stands in its queue; None unless it waits."""
        if task.status is not TaskStatus.PENDING:
            return None
        ahead = self._queues.of(task.route, task.model).ahead_of(task)
        wait_s = self._wait_s(task.route, task.model, ahead, now)
        return QueuePlace(position=ahead + 1, expected_wait_s=None if wait_s is None else round(wait_s, 1))

    def retry_after_s(self, model: str, now: datetime) -> float:
        """`Retry-After` of a request that the degraded queue refused, in seconds; 5 when nothing was measured there.

        Worked out ten times a second at most.
        """
        at, answered_s = self._answered.get(model, (now, 0.0))
        if not 0 < _seconds(now - at) < RETRY_KEPT_S:
            answered_s = self._retry_after_s(model, now)
            self._answered[model] = now, answered_s
        return answered_s

    def _retry_after_s(self, model: str, now: datetime) -> float:
        if self._queues.service_s("degraded", model) is None:
            return RETRY_UNMEASURED_S
        queue = self._queues.of("degraded", model)
        running_s = max(self._remaining_s(queue, now), default=0.0)
        place_free_s = 0.0
        if len(queue.waiting) >= DEGRADED_MAX_MSGS:
            place_free_s = min(running_s, *(_seconds(task.deadline_at - now) for task in queue.waiting))
        return retry_after_s(
            running_s=running_s,
            waiting_s=sum(self._service_s(task) for task in queue.waiting),
            place_free_s=place_free_s,
            wait_s=self._windows.wait_s("degraded"),
        )

    def new_wait_s(self, route: Literal["lane", "degraded"], model: str, now: datetime) -> float | None:
        """How many seconds a request for *model* would wait on *route* if it came now; None before a measurement."""
        return self._wait_s(route, model, len(self._queues.of(route, model).waiting), now)

    def left_s(self, task: GenerationTask, now: datetime) -> float | None:
        """How long *task*, which runs, will probably run on, in seconds; None before a measurement."""
        service_s = self._queues.service_s(task.route, task.model)
        if service_s is None or task.claimed_at is None:
            return None
        return max(0.0, service_s - _seconds(now - task.claimed_at))

    def _wait_s(self, route: Literal["lane", "degraded"], model: str, ahead: int, now: datetime) -> float | None:
        service_s = self._queues.service_s(route, model)
        if service_s is None:
            return None
        queue = self._queues.of(route, model)
        remaining_s = self._remaining_s(queue, now)
        if route == "lane":
            states, _ = self._lanes.states(model, now)
            lanes = sum(state in READY_STATES for state in states)
            return lane_wait_s(ahead, service_s=service_s, remaining_s=remaining_s, lanes=lanes)
        first = [Ahead(self._service_s(task), _seconds(task.deadline_at - now)) for task in queue.waiting[:ahead]]
        return degraded_wait_s(first, remaining_s=max(remaining_s, default=0.0))

    def _remaining_s(self, queue: WorkQueue, now: datetime) -> list[float]:
        return [
            max(0.0, self._service_s(task) - _seconds(now - task.claimed_at))
            for task in queue.running
            if task.claimed_at is not None
        ]

    def _service_s(self, task: GenerationTask) -> float:
        # asked only of a queue where something was measured, and then every model of it has a figure
        return self._queues.service_s(task.route, task.model) or 0.0


def _seconds(span: timedelta) -> float:
    return span.total_seconds()
