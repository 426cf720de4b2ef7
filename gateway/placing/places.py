"""The places of the tasks that start next in every queue, for streams that show many tasks."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from msgspec import Struct

from contracts.api.tasks import QueuePlace
from contracts.tasks import GenerationTask
from gateway.boards.work_queues import WorkQueues
from gateway.placing.estimate import Estimates

# So many tasks of each queue, the next ones first. A task further behind gets a place when the task itself changes.
PLACES_MAX: Final = 100
# One look serves every stream for this long.
KEPT: Final = timedelta(seconds=0.5)


class StandingTask(Struct, frozen=True):
    """A task that waits, and its place."""

    task: GenerationTask
    place: QueuePlace


class Places:
    """The first places of every queue."""

    def __init__(self, queues: WorkQueues, estimates: Estimates, models: Iterable[str]) -> None:
        self._queues, self._estimates, self._models = queues, estimates, tuple(models)
        self._known: tuple[datetime, Sequence[StandingTask]] | None = None

    def first(self, now: datetime) -> Sequence[StandingTask]:
        """The first tasks of each queue, as of half a second ago at most."""
        if self._known is None or not timedelta(0) <= now - self._known[0] < KEPT:
            self._known = now, self._look(now)
        return self._known[1]

    def _look(self, now: datetime) -> Sequence[StandingTask]:
        queues = [*(self._queues.of("lane", model) for model in self._models), self._queues.of("degraded", "")]
        found = []
        for queue in queues:
            for task in islice(queue.waiting, PLACES_MAX):
                place = self._estimates.place(task, now)
                if place is not None:
                    found.append(StandingTask(task, place))
        return found
