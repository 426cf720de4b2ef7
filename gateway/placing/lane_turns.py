"""The order in which the lanes of a model take the tasks that wait for them (ADR 0042)."""

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from msgspec.structs import replace

from contracts.api.tasks import QueuePlace
from contracts.order import Costs, Forecast, Ledger, OnCard, Policy, Waiting, choose, started, waiting_of
from contracts.tasks import GenerationTask
from contracts.topology import LANE_LOOK_MAX
from gateway.boards.work_queues import WorkQueue, WorkQueues
from gateway.placing.service_times import seconds

# One forecast serves all requests for this long: a forecast of a hundred tasks takes milliseconds.
FORECAST_KEPT_S: Final = 0.1


def lane_forecast(
    waiting: Sequence[Waiting],
    *,
    model: str,
    service_s: float,
    free_s: Sequence[float],
    ledger: Ledger,
    policy: Policy,
) -> dict[str, Forecast]:
    """When each of the *waiting* tasks, the oldest first, will start on lanes that are free at *free_s*, by its id, if
    no other task comes. A lane sees the oldest LANE_LOOK_MAX; the tasks behind them are assumed to start in order of
    arrival.
    """
    costs, loaded = Costs(run_s={model: service_s}), OnCard(model, 0.0)
    # a lane takes an overdue task as well
    hand = {task.task_id: replace(task, deadline_s=math.inf) for task in waiting[:LANE_LOOK_MAX]}
    lanes = sorted(free_s)
    found: dict[str, Forecast] = {}

    def start(task: Waiting) -> float:
        at_s = heapq.heappop(lanes)
        found[task.task_id] = Forecast(position=len(found) + 1, start_s=at_s, in_time=at_s < task.deadline_s)
        heapq.heappush(lanes, at_s + service_s)
        return at_s

    while hand:
        choice = choose(hand.values(), loaded=loaded, costs=costs, ledger=ledger, policy=policy, now_s=lanes[0])
        assert choice is not None  # none has a deadline
        at_s = start(choice.task)
        ledger = started(ledger, choice.task, hand.values(), loaded=loaded, costs=costs, now_s=at_s)
        del hand[choice.task.task_id]
    for task in itertools.islice(waiting, LANE_LOOK_MAX, None):
        start(task)
    return found


def ahead_by_class(queue: WorkQueue, task: GenerationTask) -> int:
    """How many of *queue* go before *task* by class and age alone: for a task that is not in the forecast yet."""
    turn = task.priority.rank, task.queued_at, task.id
    return sum((each.priority.rank, each.queued_at, each.id) < turn for each in queue.waiting)


class LaneTurns:
    """Whose turn it is on the lanes of each model, where classes or callers differ."""

    def __init__(
        self,
        queues: WorkQueues,
        free_s: Callable[[str, datetime], list[float]],
        wait_s: Callable[[str, int, datetime], float | None],
        *,
        policy: Policy,
    ) -> None:
        """*free_s* gives in how many seconds each lane of a model is free. *wait_s* gives how long a task waits behind
        so many others; None before a measurement."""
        self._queues = queues
        self._free_s = free_s
        self._wait_s = wait_s
        self._policy = policy
        self._kept: dict[str, tuple[datetime, dict[str, Forecast]]] = {}
        queues.lane_ahead_of = lambda task: self.place(task, datetime.now(UTC)).position - 1

    def place(self, task: GenerationTask, now: datetime) -> QueuePlace:
        """The place of *task*, which waits for a lane, and its expected wait; that is None before a measurement."""
        queue = self._queues.of("lane", task.model)
        found = None if queue.is_uniform else self._forecasts(task.model, queue, now).get(task.message_id)
        if found is not None and self._queues.service_s("lane", task.model) is not None:
            return QueuePlace(
                position=found.position, expected_wait_s=round(max(0.0, found.start_s - now.timestamp()), 1)
            )
        if found is not None:
            return QueuePlace(position=found.position, expected_wait_s=None)
        ahead = queue.ahead_of(task) if queue.is_uniform else ahead_by_class(queue, task)
        wait_s = self._wait_s(task.model, ahead, now)
        return QueuePlace(position=ahead + 1, expected_wait_s=None if wait_s is None else round(wait_s, 1))

    def _forecasts(self, model: str, queue: WorkQueue, now: datetime) -> dict[str, Forecast]:
        kept = self._kept.get(model)
        if kept is None or not 0 <= seconds(now - kept[0]) < FORECAST_KEPT_S:
            now_s = now.timestamp()
            forecasts = lane_forecast(
                [waiting_of(task) for task in queue.waiting],
                model=model,
                service_s=self._queues.service_s("lane", model) or 0.0,
                free_s=[now_s + free_s for free_s in self._free_s(model, now)],
                ledger=queue.ledger,
                policy=self._policy,
            )
            kept = self._kept[model] = now, forecasts
        return kept[1]
