"""What became of the tasks of the last hour, by the minute, and the newest swaps: from the records as they come. In
memory, pure.

A gateway that starts reads the records of the hour before, and lacks only refusals without a record.
"""

from collections import deque
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, Literal

from msgspec import Struct

from contracts.memory import SwapReceipt
from contracts.tasks import FailureCode, GenerationTask, TaskStatus

MINUTE: Final = timedelta(minutes=1)
MINUTES_KEPT: Final = 60
SWAPS_MAX: Final = 64

Route = Literal["lane", "degraded"]


class Minute(Struct, kw_only=True):
    """What became of tasks of *model* on *route* in the minute that began at *at*: how many a worker started, and how
    long these had waited in all and at most, in seconds; and how many ended in which way."""

    at: datetime
    model: str
    route: Route
    started: int = 0
    wait_sum_s: float = 0.0
    wait_max_s: float = 0.0
    done: int = 0
    failed: int = 0
    overloaded: int = 0


class Swap(Struct, frozen=True, kw_only=True):
    """A load that the task *task_id*, which ended at *at*, needed."""

    task_id: str
    model: str
    worker: str | None
    at: datetime
    swap: SwapReceipt


def minute_of(at: datetime) -> datetime:
    """The beginning of the minute of *at*."""
    return at.replace(second=0, microsecond=0)


class RecentWork:
    """The minutes of the last hour, and the newest swaps. The task board feeds it."""

    def __init__(self) -> None:
        self._minutes: dict[tuple[datetime, str, Route], Minute] = {}
        self._oldest: datetime | None = None
        self._swaps: deque[Swap] = deque(maxlen=SWAPS_MAX)

    def take_in(self, before: TaskStatus | None, task: GenerationTask, now: datetime) -> None:
        """The record of *task* is new, or changed; its status was *before*, None where that is not known.

        1. A worker took it, from a queue or before this gateway knew it: it counts as started.
        2. It has ended, and had not ended before: the way in which it ended counts, and its swap is kept.
        """
        was_waiting = before in (None, TaskStatus.PENDING)
        if was_waiting and task.claimed_at is not None and task.claimed_at >= task.queued_at:  # 1
            minute = self._minute(task.claimed_at, task.model, task.route, now)
            if minute is not None:
                wait_s = (task.claimed_at - task.queued_at).total_seconds()
                minute.started += 1
                minute.wait_sum_s += wait_s
                minute.wait_max_s = max(minute.wait_max_s, wait_s)
        if task.finished_at is None or (before is not None and before.is_terminal):
            return
        minute = self._minute(task.finished_at, task.model, task.route, now)  # 2
        if minute is not None:
            if task.status is TaskStatus.DONE:
                minute.done += 1
            elif task.error is not None and task.error.code is FailureCode.QUEUE_OVERLOADED:
                minute.overloaded += 1
            else:
                minute.failed += 1
        if task.swap is not None:
            self._swaps.append(
                Swap(task_id=task.id, model=task.model, worker=task.worker, at=task.finished_at, swap=task.swap)
            )

    def forget(self, task_id: str) -> None:
        """The record of *task_id* is gone: its swap goes too, but what was counted of it stays."""
        if any(each.task_id == task_id for each in self._swaps):
            self._swaps = deque((each for each in self._swaps if each.task_id != task_id), maxlen=SWAPS_MAX)

    def refused(self, model: str, now: datetime) -> None:
        """This gateway refused a request for *model*, of which there is no record: the degraded queue was full, or no
        worker was expected to be free in time."""
        minute = self._minute(now, model, "degraded", now)
        if minute is not None:
            minute.overloaded += 1

    def minutes(self, models: Iterable[str], now: datetime) -> list[Minute]:
        """The minutes of *models* in which something happened, the oldest first."""
        wanted, oldest = frozenset(models), self.since(now)
        found = [each for each in self._minutes.values() if each.model in wanted and each.at >= oldest]
        return sorted(found, key=lambda each: (each.at, each.model, each.route))

    def since(self, now: datetime) -> datetime:
        """The beginning of the oldest minute that is kept at *now*."""
        return minute_of(now) - (MINUTES_KEPT - 1) * MINUTE

    def swaps(self, models: Iterable[str]) -> list[Swap]:
        """The newest swaps to one of *models*, the newest first."""
        wanted = frozenset(models)
        return sorted((each for each in self._swaps if each.model in wanted), key=lambda each: each.at, reverse=True)

    def _minute(self, at: datetime, model: str, route: Route, now: datetime) -> Minute | None:
        """The minute of *at*, where it is one of the last hour."""
        oldest = self.since(now)
        if oldest != self._oldest:
            self._oldest = oldest
            self._minutes = {name: each for name, each in self._minutes.items() if each.at >= oldest}
        begin = minute_of(at)
        if not oldest <= begin <= now + MINUTE:
            return None
        return self._minutes.setdefault((begin, model, route), Minute(at=begin, model=model, route=route))
