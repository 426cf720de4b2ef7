"""When a gateway has to look at each task that has not ended, by the task's own record. Pure: no clock, no I/O; the
task board feeds it."""

import heapq
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from contracts.tasks import GenerationTask
from gateway.rules.due import look_at

# Every gateway may act, and a compare-and-set decides. Each waits a share of this, by a hash of its name and the task:
# the gateway that comes first differs from task to task, and the others see what it did before their turn comes.
SPREAD_S: Final = 0.1
# A gateway that could do nothing when it looked, because the server did not answer, looks again after this time.
AGAIN_S: Final = 1.0


class Deadlines:
    """A heap of the live records' own deadlines.

    A task that is due comes up again every AGAIN_S, until its record changes or asks for a later look. So a look that
    achieved nothing loses no task.
    """

    def __init__(self, name: str) -> None:
        """*name* is this gateway's name, unique in its deployment."""
        self._name = name
        self._live: dict[str, GenerationTask] = {}
        self._at: dict[str, datetime] = {}
        self._placed: dict[str, int] = {}
        # the old entry of a task that was put off or has changed stays here until its time comes, and is skipped then
        self._heap: list[tuple[datetime, str]] = []
        self.on_sooner: Callable[[], None] = lambda: None
        """Called when the next task is due sooner than `next_at` said last."""

    def take_in(self, task: GenerationTask) -> None:
        """The record of *task* is new, or changed."""
        if task.status.is_terminal:
            self.forget(task.id)
        else:
            self._live[task.id] = task
            self._schedule(task)

    def forget(self, task_id: str) -> None:
        """The task has ended or is gone; an unknown task is fine."""
        self._live.pop(task_id, None)
        self._at.pop(task_id, None)
        self._placed.pop(task_id, None)

    def placed(self, task: GenerationTask) -> None:
        """This gateway has sent the message of *task*'s placement."""
        known = self._live.get(task.id)
        if known is not None:
            self._placed[task.id] = task.epoch
            self._schedule(known)

    def is_placed(self, task: GenerationTask) -> bool:
        """Whether this gateway has sent the message of *task*'s placement."""
        return self._placed.get(task.id) == task.epoch

    def put_off(self, task_id: str, at: datetime) -> None:
        """*task_id* cannot be judged before *at*. A change of its record still sets a new time."""
        if task_id in self._live:
            self._put(task_id, at)

    def due(self, now: datetime, *, limit: int) -> list[str]:
        """At most *limit* tasks to look at now, in the order in which they became due."""
        found: list[str] = []
        again_at = now + timedelta(seconds=AGAIN_S)
        while self._heap and self._heap[0][0] <= now and len(found) < limit:
            at, task_id = heapq.heappop(self._heap)
            if self._at.get(task_id) == at:
                found.append(task_id)
                self._put(task_id, again_at)
        return found

    def next_at(self) -> datetime | None:
        """When the next task is due; None without any."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _schedule(self, task: GenerationTask) -> None:
        at = look_at(task, is_placed=self.is_placed(task))
        if at is not None:
            self._put(task.id, at + timedelta(seconds=SPREAD_S * share(self._name, task.id)))

    def _put(self, task_id: str, at: datetime) -> None:
        if self._at.get(task_id) == at:
            return
        self._at[task_id] = at
        heapq.heappush(self._heap, (at, task_id))
        if self._heap[0] == (at, task_id):
            self.on_sooner()


def share(name: str, task_id: str) -> float:
    """The turn of gateway *name* among all gateways for *task_id*: from 0, the first, up to 1."""
    return zlib.crc32(f"{name} {task_id}".encode()) / 0xFFFFFFFF
