"""The order in which the leader takes the tasks that wait on the degraded queue (ADR 0038), and when another try makes
sense there."""

import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final

from msgspec.structs import replace

from contracts.api.tasks import QueuePlace
from contracts.lanes import Leadership
from contracts.order import Forecast, OrderState, Waiting, forecast, waiting_of
from contracts.tasks import GenerationTask, Priority
from contracts.topology import DEGRADED_MAX_MSGS
from gateway.boards.work_queues import WorkQueues
from gateway.placing.service_times import remaining_s, seconds
from gateway.rules.expected import Running, is_hopeless

RETRY_UNMEASURED_S: Final = 5.0
RETRY_MIN_S: Final = 1.0
# One answer serves all requests for this long: it is in whole seconds, and a busy gateway gives thousands of them.
RETRY_KEPT_S: Final = 0.1
# While no task comes or goes, one forecast of the degraded queue serves all requests for this long.
FORECAST_KEPT_S: Final = 0.1
# The id of a request that has not come, in a forecast.
_NEW: Final = "new"


def retry_after_s(*, running_s: float, waiting_s: float, place_free_s: float, wait_s: float) -> float:
    """In how many seconds a new request would be taken within *wait_s*, if no other request came; at least 1 s.

    The worker is free in *running_s*. The waiting tasks need *waiting_s*, as if none gave up: under overload, others
    come in their place. They delay the request by *wait_s* at most: by then they are gone. The queue has room in
    *place_free_s*.
    """
    return max(RETRY_MIN_S, place_free_s, running_s - wait_s, min(wait_s, running_s + waiting_s - wait_s))


class Turns:
    """Whose turn it is on the degraded queue, and when."""

    def __init__(
        self, queues: WorkQueues, leader: Callable[[datetime], Leadership | None], *, wait_limit_s: float
    ) -> None:
        """*leader* gives the worker that serves the queue; a request waits there for *wait_limit_s* at most."""
        self._queues = queues
        self._leader = leader
        self._wait_limit_s = wait_limit_s
        self._answered: dict[tuple[str, Priority], tuple[datetime, float]] = {}
        self._forecast: tuple[datetime, int, dict[str, Forecast]] | None = None
        queues.degraded_ahead_of = self._ahead_of

    def _ahead_of(self, task: GenerationTask) -> int:
        return self.place(task, datetime.now(UTC)).position - 1

    def place(self, task: GenerationTask, now: datetime) -> QueuePlace:
        """The place of *task*, and its expected wait; that is None before a measurement."""
        found = self._forecasts(now).get(task.message_id)
        if found is None:  # its record came just now
            return QueuePlace(position=len(self._queues.of("degraded", task.model).waiting) + 1, expected_wait_s=None)
        wait_s = round(max(0.0, found.start_s - now.timestamp()), 1) if self.is_measured(now) else None
        return QueuePlace(position=found.position, expected_wait_s=wait_s)

    def is_measured(self, now: datetime) -> bool:
        """Whether anything is known of how long a task takes there."""
        return bool(self._order(now).run_s)

    def _forecasts(self, now: datetime) -> dict[str, Forecast]:
        """The turns of all tasks that wait on the degraded queue; computed ten times a second at most, while none comes
        or goes."""
        queue = self._queues.of("degraded", "")
        kept = self._forecast
        if kept is None or kept[1] != queue.changes or not 0 <= seconds(now - kept[0]) < FORECAST_KEPT_S:
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
        """What the order of the degraded queue is computed from: the leader's own figures. Where the leader has none
        yet, the service times of earlier tasks take their place. Without a leader the order is that of arrival."""
        leadership = self._leader(now)
        state = None if leadership is None else leadership.order
        if state is None:
            state = OrderState(at=now, order="fifo", swap_share=1.0, slice_max_s=0.0, turn_share=1.0)
        return state if state.run_s else replace(state, run_s=self._queues.services_s("degraded"))

    def _busy_s(self, state: OrderState, now: datetime) -> float:
        running = self._queues.of("degraded", "").running
        if running and state.free_at is not None:
            return max(0.0, seconds(state.free_at - now))
        return max(remaining_s(self._queues, self._queues.of("degraded", ""), now), default=0.0)

    def is_hopeless(self, task: GenerationTask, now: datetime) -> bool:
        """Whether *task*, if it came now, would almost certainly not start in time (`gateway/rules/expected.py`). False
        while no worker leads: a leader may come."""
        leadership = self._leader(now)
        state = None if leadership is None else leadership.order
        if state is None:
            return False
        now_s, queue = now.timestamp(), self._queues.of("degraded", "")
        running = next((each for each in queue.running if each.claimed_at is not None), None)
        return is_hopeless(
            waiting_of(task),
            [waiting_of(each) for each in queue.waiting],
            state=state,
            running=None
            if running is None or running.claimed_at is None
            else Running(running.model, running.claimed_at.timestamp(), now_s + self._busy_s(state, now)),
            now_s=now_s,
        )

    def retry_after_s(self, model: str, now: datetime, *, priority: Priority = Priority.STANDARD) -> float:
        """`Retry-After` of a request that the degraded queue refused, in seconds; 5 when nothing was measured there.

        Computed ten times a second at most.
        """
        at, answered_s = self._answered.get((model, priority), (now, 0.0))
        if not 0 < seconds(now - at) < RETRY_KEPT_S:
            answered_s = self._retry_after_s(model, now, priority)
            self._answered[model, priority] = now, answered_s
        return answered_s

    def _retry_after_s(self, model: str, now: datetime, priority: Priority) -> float:
        if not self.is_measured(now):
            return RETRY_UNMEASURED_S
        queue = self._queues.of("degraded", model)
        running_s = self._busy_s(self._order(now), now)
        place_free_s = 0.0
        if len(queue.waiting) >= DEGRADED_MAX_MSGS:
            place_free_s = min(running_s, *(seconds(task.deadline_at - now) for task in queue.waiting))
        return retry_after_s(
            running_s=running_s,
            waiting_s=self.new_wait_s(model, now, gives_up=False, priority=priority) - running_s,
            place_free_s=place_free_s,
            wait_s=self._wait_limit_s,
        )

    def new_wait_s(self, model: str, now: datetime, *, gives_up: bool, priority: Priority = Priority.STANDARD) -> float:
        """How many seconds a task of *model* and *priority* that came now would wait on the degraded queue.

        With *gives_up*, waiting tasks leave the queue when their wait is over; otherwise none of them gives up.
        """
        waiting = [waiting_of(task) for task in self._queues.of("degraded", model).waiting]
        if not gives_up:
            waiting = [replace(task, deadline_s=math.inf) for task in waiting]
        new = Waiting(task_id=_NEW, model=model, queued_s=now.timestamp(), deadline_s=math.inf, priority=priority)
        return self._forecast_of([*waiting, new], now)[_NEW].start_s - now.timestamp()
