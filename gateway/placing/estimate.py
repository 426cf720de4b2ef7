"""How long a task will wait, and when another try makes sense: from measured service times (design §9).

The functions are pure; `Estimates` asks the boards for what they need.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from msgspec.structs import replace

from contracts.api.tasks import QueuePlace
from contracts.lanes import Leadership
from contracts.order import Forecast, OrderState, Waiting, forecast, waiting_of
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
# And so long, while nothing comes or goes, it is the turn of those that wait on the degraded queue.
FORECAST_KEPT_S: Final = 0.1
# The id of a request that has not come.
_NEW: Final = "new"


def lane_wait_s(ahead: int, *, service_s: float, remaining_s: Sequence[float], lanes: int) -> float:
    """The wait behind *ahead* tasks of *service_s* each, on *lanes* that each take the next task when they are free.

    *remaining_s* has one entry for each lane that works now, none longer than *service_s*.
    """
    workers = max(lanes, len(remaining_s), 1)  # what runs proves a lane
    free_s = sorted([*remaining_s, *[0.0] * (workers - len(remaining_s))])
    return ahead // workers * service_s + free_s[ahead % workers]


def retry_after_s(*, running_s: float, waiting_s: float, place_free_s: float, wait_s: float) -> float:
    """When a new request would be taken within *wait_s*, if nobody else came, in seconds from now; at least 1 s.

    The worker is free in *running_s*; those that wait need *waiting_s*, as if none gave up: under overload, others do
    come. They delay it by at most *wait_s*, for by then they are gone. The queue has room in *place_free_s*.
    """
    return max(RETRY_MIN_S, place_free_s, running_s - wait_s, min(wait_s, running_s + waiting_s - wait_s))


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
        """*leader* is who serves the degraded queue: its order is the one that estimates follow."""
        self._queues = queues
        self._lanes = lanes
        self._windows = catalog.windows
        self._leader = leader
        self._answered: dict[str, tuple[datetime, float]] = {}
        self._forecast: tuple[datetime, int, dict[str, Forecast]] | None = None
        queues.degraded_ahead_of = self._degraded_ahead_of

    def place(self, task: GenerationTask, now: datetime) -> QueuePlace | None:
        """Where *task* stands in its queue; None unless it waits."""
        if task.status is not TaskStatus.PENDING:
            return None
        if task.route == "degraded":
            return self._degraded_place(task, now)
        ahead = self._queues.of(task.route, task.model).ahead_of(task)
        wait_s = self._lane_wait_s(task.model, ahead, now)
        return QueuePlace(position=ahead + 1, expected_wait_s=None if wait_s is None else round(wait_s, 1))

    def _degraded_ahead_of(self, task: GenerationTask) -> int:
        return self._degraded_place(task, datetime.now(UTC)).position - 1

    def _degraded_place(self, task: GenerationTask, now: datetime) -> QueuePlace:
        found = self._forecasts(now).get(task.message_id)
        if found is None:  # its record came just now
            return QueuePlace(position=len(self._queues.of("degraded", task.model).waiting) + 1, expected_wait_s=None)
        wait_s = round(max(0.0, found.start_s - now.timestamp()), 1) if self._is_measured(now) else None
        return QueuePlace(position=found.position, expected_wait_s=wait_s)

    def _is_measured(self, now: datetime) -> bool:
        return bool(self._order(now).run_s)

    def _forecasts(self, now: datetime) -> dict[str, Forecast]:
        """The turns of all that wait on the degraded queue; worked out ten times a second at most, while none comes or
        goes."""
        queue = self._queues.of("degraded", "")
        kept = self._forecast
        if kept is None or kept[1] != queue.changes or not 0 <= _seconds(now - kept[0]) < FORECAST_KEPT_S:
            kept = self._forecast = now, queue.changes, self._forecast_of(map(waiting_of, queue.waiting), now)
        return kept[2]

    def _forecast_of(self, waiting: Iterable[Waiting], now: datetime) -> dict[str, Forecast]:
        state = self._order(now)
        return forecast(
            waiting,
            loaded=state.on_card,
            costs=state.costs,
            ledger=state.ledger,
            policy=state.policy,
            free_s=now.timestamp() + self._busy_s(state, now),
        )

    def _order(self, now: datetime) -> OrderState:
        """What the order of the degraded queue stands on: what its leader says, and where it has measured nothing yet,
        what tasks took before it led. Without a leader, the order of arrival."""
        leadership = self._leader(now)
        state = None if leadership is None else leadership.order
        if state is None:
            state = OrderState(at=now, order="fifo", swap_share=1.0, slice_max_s=0.0, turn_share=1.0)
        return state if state.run_s else replace(state, run_s=self._queues.services_s("degraded"))

    def _busy_s(self, state: OrderState, now: datetime) -> float:
        running = self._queues.of("degraded", "").running
        if running and state.free_at is not None:
            return max(0.0, _seconds(state.free_at - now))
        return max(self._remaining_s(self._queues.of("degraded", ""), now), default=0.0)

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
        if not self._is_measured(now):
            return RETRY_UNMEASURED_S
        queue = self._queues.of("degraded", model)
        running_s = self._busy_s(self._order(now), now)
        place_free_s = 0.0
        if len(queue.waiting) >= DEGRADED_MAX_MSGS:
            place_free_s = min(running_s, *(_seconds(task.deadline_at - now) for task in queue.waiting))
        return retry_after_s(
            running_s=running_s,
            waiting_s=self._new_wait_s(model, now, gives_up=False) - running_s,
            place_free_s=place_free_s,
            wait_s=self._windows.wait_s("degraded"),
        )

    def _new_wait_s(self, model: str, now: datetime, *, gives_up: bool) -> float:
        """How long a task of *model* would wait on the degraded queue that came now; unless it *gives_up*, and so those
        that wait, when its wait is over."""
        waiting = [waiting_of(task) for task in self._queues.of("degraded", model).waiting]
        if not gives_up:
            waiting = [replace(task, deadline_s=math.inf) for task in waiting]
        new = Waiting(task_id=_NEW, model=model, queued_s=now.timestamp(), deadline_s=math.inf)
        return self._forecast_of([*waiting, new], now)[_NEW].start_s - now.timestamp()

    def new_wait_s(self, route: Literal["lane", "degraded"], model: str, now: datetime) -> float | None:
        """How many seconds a request for *model* would wait on *route* if it came now; None before a measurement."""
        if route == "lane":
            return self._lane_wait_s(model, len(self._queues.of(route, model).waiting), now)
        return self._new_wait_s(model, now, gives_up=True) if self._is_measured(now) else None

    def left_s(self, task: GenerationTask, now: datetime) -> float | None:
        """How long *task*, which runs, will probably run on, in seconds; None before a measurement."""
        service_s = self._queues.service_s(task.route, task.model)
        if service_s is None or task.claimed_at is None:
            return None
        return max(0.0, service_s - _seconds(now - task.claimed_at))

    def _lane_wait_s(self, model: str, ahead: int, now: datetime) -> float | None:
        service_s = self._queues.service_s("lane", model)
        if service_s is None:
            return None
        states, _ = self._lanes.states(model, now)
        lanes = sum(state in READY_STATES for state in states)
        remaining_s = self._remaining_s(self._queues.of("lane", model), now)
        return lane_wait_s(ahead, service_s=service_s, remaining_s=remaining_s, lanes=lanes)

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
