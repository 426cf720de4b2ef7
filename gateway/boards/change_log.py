"""Which tasks changed after a revision: the newest change of each task, for a bounded number. In memory, pure."""

from typing import Final

from sortedcontainers import SortedList

CHANGES_MAX: Final = 10_000


class TooOld(Exception):
    """More has changed since then than is remembered."""


class ChangeLog:
    """The newest revision of each of the *most* tasks that changed last."""

    def __init__(self, most: int = CHANGES_MAX) -> None:
        self._most = most
        self._revisions: dict[str, int] = {}
        self._changes: SortedList[tuple[int, str]] = SortedList()
        self._forgotten_upto = 0

    def put(self, task_id: str, revision: int) -> None:
        """The record of *task_id* is at *revision*; an older revision than the known one changes nothing."""
        known = self._revisions.get(task_id)
        if known is not None:
            if known >= revision:
                return
            self._changes.remove((known, task_id))
        self._revisions[task_id] = revision
        self._changes.add((revision, task_id))
        if len(self._changes) > self._most:
            self._forgotten_upto, oldest = self._changes.pop(0)
            del self._revisions[oldest]

    def pop(self, task_id: str) -> None:
        """The record of *task_id* is gone; a task that is not remembered is fine."""
        revision = self._revisions.pop(task_id, None)
        if revision is not None:
            self._changes.remove((revision, task_id))

    def forget(self, upto: int) -> None:
        """Forgets every change at *upto* or before."""
        while self._changes and self._changes[0][0] <= upto:
            del self._revisions[self._changes.pop(0)[1]]
        self._forgotten_upto = upto

    def after(self, revision: int) -> list[str]:
        """The tasks whose newest change came after *revision*, in the order of these changes. Raises TooOld."""
        if revision < self._forgotten_upto:
            raise TooOld
        return [task_id for _, task_id in self._changes.irange((revision + 1, ""))]
