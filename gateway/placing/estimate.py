"""How long a task will wait, and when another try makes sense: from measured service times (design §9).

The functions are pure; `Estimates` asks the boards for what they need.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal

from contracts.api.tasks import QueuePlace
from contracts.lanes import Leadership
from contracts.settings import Catalog
from contracts.tasks import GenerationTask, Priority, TaskStatus
from gateway.boards.lane_board import LaneBoard
from gateway.boards.work_queues import WorkQueues
from gateway.placing.lane_turns import LaneTurns
from gateway.placing.service_times import remaining_s, seconds
from gateway.placing.turns import Turns
from gateway.rules.routing import READY_STATES


def lanes_free_s(*, remaining_s: Sequence[float], lanes: int) -> list[float]:
    """In how many seconds each of *lanes* is free, the first one first. *remaining_s* has one entry for each lane that
    works now."""
    workers = max(lanes, len(remaining_s), 1)  # a task that runs proves a lane
    return sorted([*remaining_s, *[0.0] * (workers - len(remaining_s))])


def lane_wait_s(ahead: int, *, service_s: float, remaining_s: Sequence[float], lanes: int) -> float:
    """The wait behind *ahead* tasks of *service_s* each, on *lanes* that each take the next task when they are free.

    *remaining_s* has one entry for each lane that works now, none longer than *service_s*.
    """
    free_s = lanes_free_s(remaining_s=remaining_s, lanes=lanes)
    return ahead // len(free_s) * service_s + free_s[ahead % len(free_s)]


class Estimates:
    """The estimates of one gateway, from what its boards hold."""

    def __init__(
        self,
        *,
        queues: WorkQueues,
        lanes: LaneBoard,
        catalog: Catalog,
        leader: Callable[[datetime], Leadership | None] = lambda _: None,
    ) -> None:
        """*leader* gives the worker that serves the degraded queue: estimates follow its order."""
        self._queues = queues
        self._lanes = lanes
        self._turns = Turns(queues, leader, wait_limit_s=catalog.windows.wait_s("degraded"))
        self._lane_turns = LaneTurns(queues, self._lanes_free_s, self._lane_wait_s, policy=catalog.degraded)

    def place(self, task: GenerationTask, now: datetime) -> QueuePlace | None:
        """Where *task* stands in its queue; None unless it waits."""
        if task.status is not TaskStatus.PENDING:
            return None
        if task.route == "degraded":
            return self._turns.place(task, now)
        return self._lane_turns.place(task, now)

    def retry_after_s(self, model: str, now: datetime, *, priority: Priority = Priority.STANDARD) -> float:
        """`Retry-After` of a request that the degraded queue refused, in seconds; 5 when nothing was measured there."""
        return self._turns.retry_after_s(model, now, priority=priority)

    def is_hopeless(self, task: GenerationTask, now: datetime) -> bool:
        """Whether *task*, if it came to the degraded queue now, would almost certainly not start in time."""
        return self._turns.is_hopeless(task, now)

    def new_wait_s(self, route: Literal["lane", "degraded"], model: str, now: datetime) -> float | None:
        """How many seconds a request for *model* would wait on *route* if it came now; None before a measurement."""
        if route == "lane":
            return self._lane_wait_s(model, len(self._queues.of(route, model).waiting), now)
        return self._turns.new_wait_s(model, now, gives_up=True) if self._turns.is_measured(now) else None

    def left_s(self, task: GenerationTask, now: datetime) -> float | None:
        """How long *task*, which runs, will probably run on, in seconds; None before a measurement."""
        service_s = self._queues.service_s(task.route, task.model)
        if service_s is None or task.claimed_at is None:
            return None
        return max(0.0, service_s - seconds(now - task.claimed_at))

    def _lane_wait_s(self, model: str, ahead: int, now: datetime) -> float | None:
        service_s = self._queues.service_s("lane", model)
        if service_s is None:
            return None
        left_s = remaining_s(self._queues, self._queues.of("lane", model), now)
        return lane_wait_s(ahead, service_s=service_s, remaining_s=left_s, lanes=self._ready(model, now))

    def _lanes_free_s(self, model: str, now: datetime) -> list[float]:
        left_s = remaining_s(self._queues, self._queues.of("lane", model), now)
        return lanes_free_s(remaining_s=left_s, lanes=self._ready(model, now))

    def _ready(self, model: str, now: datetime) -> int:
        states, _ = self._lanes.states(model, now)
        return sum(state in READY_STATES for state in states)
