"""When a gateway forgets each ended task whose request set a time for that. Pure: no clock, no I/O; the task board
feeds it."""

import heapq
from datetime import datetime

from contracts.tasks import GenerationTask
from gateway.rules.keeping import kept_until_s


class Expiries:
    """A heap of the moments that the records name: the cost of a look depends on how many tasks are due, not on how
    many there are.

    A task that is due stays due until its record is gone, or names another moment.
    """

    def __init__(self) -> None:
        self._at_s: dict[str, float] = {}
        # the old entry of a task that is gone or has changed stays here until its time comes, and is skipped then
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._at_s)

    def take_in(self, task: GenerationTask) -> None:
        """The record of *task* is new, or changed."""
        at_s = kept_until_s(task)
        if at_s is None:
            self.forget(task.id)
        elif self._at_s.get(task.id) != at_s:
            self._at_s[task.id] = at_s
            heapq.heappush(self._heap, (at_s, task.id))

    def forget(self, task_id: str) -> None:
        """The task is gone; an unknown task is fine."""
        self._at_s.pop(task_id, None)

    def is_due(self, task_id: str, now: datetime) -> bool:
        """Whether the task was to be kept until *now* at most."""
        at_s = self._at_s.get(task_id)
        return at_s is not None and at_s <= now.timestamp()

    def due(self, now: datetime) -> list[str]:
        """Every task that is to be forgotten by *now*, in the order in which they became due."""
        found: dict[str, float] = {}
        while self._heap and self._heap[0][0] <= now.timestamp():
            at_s, task_id = heapq.heappop(self._heap)
            if self._at_s.get(task_id) == at_s:
                found[task_id] = at_s
        for task_id, at_s in found.items():  # they stay due until they are gone
            heapq.heappush(self._heap, (at_s, task_id))
        return list(found)
