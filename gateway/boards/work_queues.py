"""The tasks that wait and run on each work queue, and how long tasks took there. In memory; the task board feeds it."""

import bisect
import math
import statistics
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Final, Literal

from contracts.order import Costs, Ledger, OnCard, Waiting, started, waiting_of
from contracts.tasks import GenerationTask, Priority, TaskStatus
from contracts.topology import work_stream

SAMPLES_MAX: Final = 20


class WorkQueue:
    """One queue: that of a model's lanes, or the degraded one for all models. Only `WorkQueues` changes it."""

    def __init__(self) -> None:
        self._waiting: list[GenerationTask] = []
        self._running: dict[str, GenerationTask] = {}
        self._kinds: Counter[tuple[Priority, str]] = Counter()
        self.ledger = Ledger()
        """What the workers of the queue remember for their order, as far as their claims show."""
        self.changes = 0
        """Grows whenever a task comes or goes, and when one is claimed."""
        self.moves = 0
        """Grows whenever a task that waits may stand elsewhere than before."""

    @property
    def waiting(self) -> Sequence[GenerationTask]:
        """The tasks that wait, the next one first."""
        return self._waiting

    @property
    def is_uniform(self) -> bool:
        """Whether all waiting tasks are of one class and caller: they are then taken in order of arrival."""
        return len(self._kinds) <= 1

    @property
    def running(self) -> Collection[GenerationTask]:
        """The tasks that a worker holds."""
        return self._running.values()

    def ahead_of(self, task: GenerationTask) -> int:
        """How many tasks came before *task*, which waits. Costs a binary search, unless it came last."""
        if self._waiting and self._waiting[-1] is task:
            return len(self._waiting) - 1
        return bisect.bisect_left(self._waiting, _turn(task), key=_turn)

    def add(self, task: GenerationTask) -> None:
        self.changes += 1
        if task.status is TaskStatus.PENDING:
            is_last = not self._waiting or _turn(self._waiting[-1]) <= _turn(task)
            ahead = len(self._waiting) if is_last else bisect.bisect_right(self._waiting, _turn(task), key=_turn)
            self._kinds[task.priority, task.caller] += 1
            self.moves += ahead < len(self._waiting) or not self.is_uniform
            self._waiting.insert(ahead, task)
        else:
            self._running[task.id] = task

    def remove(self, task: GenerationTask) -> None:
        self.changes += 1
        if task.status is TaskStatus.PENDING:
            ahead = self.ahead_of(task)
            del self._waiting[ahead]
            self.moves += ahead < len(self._waiting) or not self.is_uniform
            self._kinds[task.priority, task.caller] -= 1
            if not self._kinds[task.priority, task.caller]:
                del self._kinds[task.priority, task.caller]
        else:
            del self._running[task.id]

    def charge(self, task: GenerationTask, *, service_s: float, at_s: float) -> None:
        """A lane claimed *task*, which waited here, at *at_s*. The task will run for *service_s*."""
        # one task of each waiting class is enough: the ledger only asks which classes wait
        waits = [
            Waiting(task_id="", model=task.model, queued_s=at_s, deadline_s=math.inf, priority=priority)
            for priority in {priority for priority, _ in self._kinds}
        ]
        costs = Costs(run_s={task.model: service_s})
        loaded = OnCard(task.model, at_s)
        self.ledger = started(self.ledger, waiting_of(task), waits, loaded=loaded, costs=costs, now_s=at_s)


class WorkQueues:
    """Every queue, and the newest service times: from claim to end, with the swap where there was one."""

    def __init__(self) -> None:
        self._queues: dict[str, WorkQueue] = {}
        self._live: dict[str, GenerationTask] = {}
        self._service_s: dict[tuple[str, str], deque[float]] = {}
        self._median_s: dict[tuple[str, str], float] = {}
        self.degraded_ahead_of: Callable[[GenerationTask], int] | None = None
        """How many tasks go before one on the degraded queue. `Turns` sets it; without it, arrival decides."""
        self.lane_ahead_of: Callable[[GenerationTask], int] | None = None
        """The same for the queues of lanes, where classes or callers differ; `LaneTurns` sets it."""

    def of(self, route: Literal["lane", "degraded"], model: str) -> WorkQueue:
        """The queue that carries tasks of *model* on *route*."""
        name = work_stream(route, model)
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = WorkQueue()
        return queue

    @property
    def moves(self) -> int:
        """Grows whenever a task that waits on any of them may stand elsewhere than before."""
        ordered = self.of("degraded", "") if self.degraded_ahead_of else None
        return sum(queue.changes if queue is ordered else queue.moves for queue in self._queues.values())

    def ahead_of(self, task: GenerationTask) -> int:
        """How many tasks go before *task*; 0 unless it waits."""
        if task.status is not TaskStatus.PENDING:
            return 0
        if task.route == "degraded" and self.degraded_ahead_of is not None:
            return self.degraded_ahead_of(task)
        queue = self.of(task.route, task.model)
        if task.route == "lane" and self.lane_ahead_of is not None and not queue.is_uniform:
            return self.lane_ahead_of(task)
        return queue.ahead_of(task)

    def take_in(self, task: GenerationTask) -> None:
        """The record of *task* is new, or changed."""
        before = self._live.get(task.id)
        self.forget(task.id)
        if not task.status.is_terminal:
            self._live[task.id] = task
            queue = self.of(task.route, task.model)
            queue.add(task)
            if task.route == "lane" and task.claimed_at is not None and before is not None and _waited(before, task):
                service_s = self.service_s("lane", task.model) or 0.0
                queue.charge(before, service_s=service_s, at_s=task.claimed_at.timestamp())
        # only a task that ended while it was claimed has an owner then: one that ended in the queue was not served
        elif task.owner is not None and task.claimed_at is not None and task.finished_at is not None:
            samples = self._service_s.setdefault((task.route, task.model), deque(maxlen=SAMPLES_MAX))
            samples.append(max(0.0, (task.finished_at - task.claimed_at).total_seconds()))
            self._median_s[task.route, task.model] = statistics.median(samples)

    def forget(self, task_id: str) -> None:
        """The task is gone; one that was unknown is fine."""
        task = self._live.pop(task_id, None)
        if task is not None:
            self.of(task.route, task.model).remove(task)

    def services_s(self, route: Literal["lane", "degraded"]) -> dict[str, float]:
        """The median service times of all models on *route* of which there is one."""
        return {model: median_s for (served, model), median_s in self._median_s.items() if served == route}

    def service_s(self, route: Literal["lane", "degraded"], model: str) -> float | None:
        """The median service time of *model* on *route*; None when nothing was measured.

        On the degraded queue a model without a sample takes the median of all: they share one worker.
        """
        measured_s = self._median_s.get((route, model))
        if measured_s is not None or route == "lane":
            return measured_s
        samples = [sample for (served, _), each in self._service_s.items() if served == route for sample in each]
        return statistics.median(samples) if samples else None


def _waited(before: GenerationTask, task: GenerationTask) -> bool:
    return before.status is TaskStatus.PENDING and task.status is TaskStatus.PROCESSING


def _turn(task: GenerationTask) -> tuple[datetime, str]:
    return task.queued_at, task.id
