"""Where the tasks stand that start next, of every queue: for streams that show many of them."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from msgspec import Struct

from contracts.api.tasks import QueuePlace
from contracts.tasks import GenerationTask
from gateway.boards.work_queues import WorkQueues
from gateway.placing.estimate import Estimates

# Of each queue so many, the next ones first. Who stands further behind is shown a place when the task itself changes.
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
        """Who stands first in each queue, at most half a second ago."""
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
