"""The records of tasks (KV `tasks`), and how a process moves the record of a task that it does not hold."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from msgspec import Struct

from contracts.tasks import GenerationTask
from ops.nats.bucket import Bucket
from ops.nats.buckets import RECORDS
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink

Change = Callable[[GenerationTask, int], GenerationTask | None]
"""Takes a task and the revision of its record, and returns what the task becomes; None leaves it as it is."""


class KnownTask(Protocol):
    """A task at one revision of its record."""

    @property
    def task(self) -> GenerationTask: ...

    @property
    def revision(self) -> int: ...


class TaskAtRevision(Struct, frozen=True):
    """A task as it was read."""

    task: GenerationTask
    revision: int


class Moved(Struct, frozen=True):
    """A task as its record is now, and as it was *before* the move; *before* is None where nothing was written."""

    task: GenerationTask
    revision: int
    before: GenerationTask | None


def _unwatched(_: GenerationTask) -> AbstractContextManager[object]:
    return nullcontext()


class TaskRecords(Bucket[GenerationTask]):
    """The record of every task."""

    def __init__(self, link: NatsLink, *, reports: bool = True) -> None:
        super().__init__(link, RECORDS, reports=reports)

    async def read(self, task_id: str) -> KnownTask | None:
        """The task; None where there is no record, or none that can be read. Raises TransportUnavailable."""
        entry = await self.get(task_id)
        return None if entry is None or entry.value is None else TaskAtRevision(entry.value, entry.revision)

    async def move(
        self,
        task_id: str,
        change: Change,
        *,
        known: KnownTask | None = None,
        read: Callable[[str], Awaitable[KnownTask | None]] | None = None,
        around: Callable[[GenerationTask], AbstractContextManager[object]] = _unwatched,
    ) -> Moved | None:
        """Moves the record by *change*, with compare-and-set. Returns the task as it is then; None where there is no
        record.

        1. *known* is what the caller saw last; without it the record is read, by *read* where that is given.
        2. *change* says what the task becomes. It may be called several times, and what it raises ends the move.
        3. The write happens within `around(task)`, which sees WrongRevision where another process was faster.
        4. Then the record is read once more, and *change* is called again.

        Raises TransportUnavailable: then it is unknown whether the record was moved.
        """
        at = known
        while True:
            if at is None and (at := await (read or self.read)(task_id)) is None:  # 1
                return None
            task = at.task
            changed = change(task, at.revision)  # 2
            if changed is None:
                return Moved(task, at.revision, None)
            try:
                with around(task):  # 3
                    revision = await self.update(task_id, changed, revision=at.revision)
            except WrongRevision:
                at = None  # 4
                continue
            return Moved(changed, revision, task)
