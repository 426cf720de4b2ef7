"""What a gateway remembers of every task, however old: found by id, listed newest first, forgotten oldest first.

The cost of each depends on what it yields, not on how many tasks there are: a million tasks of other callers make no
listing slower. In memory, pure.
"""

from collections.abc import Iterator
from datetime import datetime
from heapq import merge
from itertools import islice
from typing import Any, Final

from msgspec import Struct
from sortedcontainers import SortedList

from contracts.generation.labels import Label
from contracts.tasks import TaskStatus

Place = tuple[datetime, str]
"""Where a task stands in a listing: when it was made, and its id."""

_EVERYBODY: Final = None
_Shelves = dict[tuple[TaskStatus, str], Any]  # SortedLists of places: as many as statuses and models
_Room = tuple[str | None, Label | None]  # a caller and a label; None is every caller, or every task


class TaskRow(Struct, frozen=True, gc=False):
    """What is remembered of a task. *paths* are the objects that its record names. *webhook*: its request asked for
    one."""

    id: str
    caller: str
    model: str
    status: TaskStatus
    created_at: datetime
    written_at: datetime
    revision: int
    paths: tuple[str, ...]
    webhook: bool = False
    labels: tuple[Label, ...] = ()


class TaskIndex:
    """The rows. Every row stands on two shelves, its caller's and everybody's, each of one status and one model; and
    on two more for each of its labels.

    A row can be in doubt while the watch reads the bucket again: the server may have lost the record (ADR 0030).
    """

    def __init__(self) -> None:
        self._rows: dict[str, TaskRow] = {}  # in the order in which they were written last
        self._shelves: dict[_Room, _Shelves] = {}
        self._doubted: set[str] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, task_id: str) -> TaskRow | None:
        """The row of *task_id*, if there is one."""
        return self._rows.get(task_id)

    def rows(self) -> tuple[TaskRow, ...]:
        """Every row, in the order in which they were last written."""
        return tuple(self._rows.values())

    def is_known(self, task_id: str, revision: int) -> bool:
        """Whether the row is of *revision* or a newer one, and in no doubt."""
        known = self._rows.get(task_id)
        return known is not None and known.revision >= revision and task_id not in self._doubted

    def doubt_all(self) -> None:
        """Puts every row in doubt, until it is confirmed, or put or popped."""
        self._doubted = set(self._rows)

    def confirm(self, task_id: str) -> None:
        """The row of *task_id* is right as it is."""
        self._doubted.discard(task_id)

    def doubted(self) -> list[str]:
        """The ids of the rows that are in doubt."""
        return list(self._doubted)

    def put(self, row: TaskRow) -> None:
        """Takes in *row*, in the place of an earlier one with its id, whose task may have been made at another time."""
        self._doubted.discard(row.id)
        known = self._rows.pop(row.id, None)
        self._rows[row.id] = row
        if known is None:
            self._shelve(row)
        elif _stands(known) != _stands(row):
            self._unshelve(known)
            self._shelve(row)

    def pop(self, task_id: str) -> TaskRow | None:
        """Forgets *task_id*. Returns its row, if there was one."""
        self._doubted.discard(task_id)
        row = self._rows.pop(task_id, None)
        if row is not None:
            self._unshelve(row)
        return row

    def newest(
        self,
        *,
        statuses: frozenset[TaskStatus] | None,
        models: frozenset[str] | None,
        caller: str | None,
        before: Place | None,
        limit: int,
        oldest_first: bool = False,
        labels: frozenset[Label] = frozenset(),
        since: datetime | None = None,
    ) -> list[Place]:
        """The places of at most *limit* tasks that match, newest first, starting after *before*. None matches all.

        With *oldest_first* the order is reversed, and still begins after *before*. A matching task has every one of
        *labels*, and was made at *since* or later. With several labels, only the tasks that have the rarest of them are
        looked at.
        """
        rooms = [self._shelves.get((caller, label), {}) for label in labels or (None,)]
        rarest = min(rooms, key=lambda shelves: sum(map(len, shelves.values())))
        low = None if since is None else (since, "")  # where no task stands: no id is empty
        first = before if low is None else low if before is None else max(before, low)
        runs = [
            shelf.irange(first, None, inclusive=(False, True))
            if oldest_first
            else shelf.irange(low, before, inclusive=(True, False), reverse=True)
            for (of_status, of_model), shelf in rarest.items()
            if (statuses is None or of_status in statuses) and (models is None or of_model in models)
        ]
        places: Iterator[Place] = merge(*runs, reverse=not oldest_first)
        if len(labels) > 1:
            places = (place for place in places if labels.issubset(self._rows[place[1]].labels))
        return list(islice(places, limit))

    def count(self, caller: str, status: TaskStatus) -> int:
        """How many tasks of *caller* are in *status*."""
        shelves = self._shelves.get((caller, None), {}).items()
        return sum(len(shelf) for (of_status, _), shelf in shelves if of_status is status)

    def written_before(self, moment: datetime, *, limit: int) -> list[str]:
        """The ids of at most *limit* tasks that were last written before *moment*, the oldest first.

        Rows come in the order of their writes, except for the difference of two clocks: a row may be found that much
        later.
        """
        found: list[str] = []
        for row in self._rows.values():
            if row.written_at >= moment or len(found) == limit:
                break
            found.append(row.id)
        return found

    def _shelve(self, row: TaskRow) -> None:
        name, place = (row.status, row.model), (row.created_at, row.id)
        for room in _rooms(row):
            shelves = self._shelves.setdefault(room, {})
            shelf = shelves.get(name)
            if shelf is None:
                shelf = shelves[name] = SortedList()
            shelf.add(place)

    def _unshelve(self, row: TaskRow) -> None:
        for room in _rooms(row):
            shelves = self._shelves[room]
            shelf = shelves[row.status, row.model]
            shelf.remove((row.created_at, row.id))
            if not shelf:
                del shelves[row.status, row.model]
            if not shelves:  # callers and labels come and go
                del self._shelves[room]


def paths_of(index: TaskIndex, task_id: str) -> tuple[str, ...]:
    """The objects that the record of *task_id* names; none without a record."""
    row = index.get(task_id)
    return () if row is None else row.paths


def _rooms(row: TaskRow) -> Iterator[_Room]:
    for caller in (_EVERYBODY, row.caller):
        yield caller, None
        for label in row.labels:
            yield caller, label


def _stands(row: TaskRow) -> tuple[str, TaskStatus, str, datetime, tuple[Label, ...]]:
    return row.caller, row.status, row.model, row.created_at, row.labels
