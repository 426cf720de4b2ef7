"""Tasks held in memory by watching KV `tasks`: live ones and the newest finished ones whole, older ones as a row.

`Readers` wait for news of one task and `Feeds` for news of many, so that long-polls and event streams cost the server
nothing.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Final

from contracts.tasks import GenerationTask
from gateway.boards.deadlines import Deadlines
from gateway.boards.expiries import Expiries
from gateway.boards.feeds import Feeds
from gateway.boards.forgotten import ForgottenTasks
from gateway.boards.readers import Readers
from gateway.boards.recent_work import RecentWork
from gateway.boards.snapshots import Snapshot, Snapshots
from gateway.boards.task_index import TaskIndex, TaskRow
from gateway.boards.work_queues import WorkQueues
from ops.nats.bucket import Versioned
from ops.nats.link import NatsLink
from ops.nats.records import Change, KnownTask, Moved, TaskRecords

# To forget one task takes some 10 µs; all tasks of a day at once would hold up every request.
FORGOTTEN_AT_ONCE: Final = 200
FORGOTTEN_MAX: Final = 100_000


class TaskBoard:
    """Every task that has a record. `start` it before use.

    *work_queues* says which tasks wait and run on each work queue, *deadlines* when to look at each task, *expiries*
    when to forget it. *index* has a row of every task. *readers* wait for news of one task, *feeds* follow many.
    *recent* is what became of tasks lately. *forgotten* names the tasks whose record was deleted. Only the board
    changes them.
    """

    def __init__(self, name: str = "gateway") -> None:
        """*name* is this gateway's name, unique in its deployment."""
        self.work_queues = WorkQueues()
        self.deadlines = Deadlines(name)
        self.expiries = Expiries()
        self.index = TaskIndex()
        self._snapshots = Snapshots()
        self.readers = Readers(self._snapshots, self.work_queues)
        self.feeds = Feeds()
        self.recent = RecentWork()
        self.forgotten = ForgottenTasks()
        self.on_change: Callable[[Snapshot], None] = lambda _: None
        """Called with every record that is new or has changed."""

    async def start(self, link: NatsLink) -> None:
        """Watches the bucket; returns once what is there now has been seen. Raises TransportUnavailable."""
        self._records = TaskRecords(link)
        self._watch = await self._records.watch(self.on_entry, on_again=self._again, on_whole=self._whole)
        await self._watch.wait()
        self.feeds.whole()

    def news_age_s(self) -> float:
        """The greatest age of what is in memory, in seconds; 0 while every change arrives at once."""
        return self._watch.age_s()

    def on_entry(self, entry: Versioned[GenerationTask]) -> None:
        """A record changed."""
        self._take_in(entry)
        self.feeds.seen(entry.revision)

    def _take_in(self, entry: Versioned[GenerationTask]) -> None:
        if entry.is_deleted:
            self.forgotten.note(entry.key, entry.time)
            self._forget(entry.key)
            return
        if self.index.is_known(entry.key, entry.revision):
            return  # most often: this gateway wrote it
        known = self.index.get(entry.key)
        if known is not None and (known.revision, known.written_at) == (entry.revision, entry.time):
            self.index.confirm(entry.key)
            return  # the watch read the bucket again, and the record is unchanged
        if entry.value is not None:
            self.record(entry.value, entry.revision, entry.time)

    def record(self, task: GenerationTask, revision: int, written_at: datetime) -> Snapshot:
        """Takes in a record that was read or written; an older revision than the known one changes nothing."""
        snapshot = Snapshot(task, revision)
        if self.index.is_known(task.id, revision):
            return snapshot
        before = self.index.get(task.id)
        row = TaskRow(
            id=task.id,
            caller=task.caller,
            model=task.model,
            status=task.status,
            created_at=task.created_at,
            written_at=written_at,
            revision=revision,
            paths=named_paths(task),
            webhook=task.webhook is not None,
            labels=tuple(task.labels.items()),
        )
        self.index.put(row)
        self._snapshots.put(snapshot)
        self.work_queues.take_in(task)
        self.deadlines.take_in(task)
        self.expiries.take_in(task)
        self.readers.publish(snapshot)
        self.feeds.changed(before, row)
        self.recent.take_in(None if before is None else before.status, task, datetime.now(UTC))
        self.on_change(snapshot)
        return snapshot

    def _again(self) -> None:
        self.index.doubt_all()
        self.feeds.again()

    def _whole(self) -> None:
        for task_id in self.index.doubted():
            self._forget(task_id)
        self.feeds.whole()

    async def get(self, task_id: str) -> Snapshot | None:
        """The task's newest known snapshot; asks the server for one that is not in memory.

        Raises TransportUnavailable.
        """
        return self._snapshots.get(task_id) or await self.read(task_id)

    async def read(self, task_id: str) -> Snapshot | None:
        """The task's snapshot from the server, whatever is in memory; None without a record that can be read.

        Raises TransportUnavailable.
        """
        before = self.index.get(task_id)
        entry = await self._records.get(task_id)
        if entry is None or entry.is_deleted:
            if entry is not None:
                self.forgotten.note(task_id, entry.time)
            if before is not None and self.index.get(task_id) is before:
                self._forget(task_id)
            return None
        return None if entry.value is None else self.record(entry.value, entry.revision, entry.time)

    async def create(self, task: GenerationTask) -> Snapshot:
        """Writes the first record of *task* and takes it in.

        Raises WrongRevision where there is one already, TransportUnavailable.
        """
        return self.record(task, await self._records.create(task.id, task), datetime.now(UTC))

    async def move(
        self,
        task_id: str,
        change: Change,
        *,
        known: KnownTask | None = None,
        around: Callable[[GenerationTask], AbstractContextManager[object]] = lambda _: nullcontext(),
    ) -> Moved | None:
        """As `TaskRecords.move`; the board takes in what that reads and writes. Raises TransportUnavailable."""
        moved = await self._records.move(task_id, change, known=known, read=self.read, around=around)
        if moved is not None and moved.before is not None:
            self.record(moved.task, moved.revision, datetime.now(UTC))
        return moved

    async def purge(self, task_id: str, *, revision: int) -> None:
        """Removes the record, with its history, at *revision*. Raises WrongRevision, TransportUnavailable."""
        await self._records.purge(task_id, revision=revision)
        self.forgotten.note(task_id, datetime.now(UTC))
        self._forget(task_id)

    async def drop_expired(self, *, keep_s: float, now: datetime) -> None:
        """Forgets tasks whose record the server has dropped by age; the server sends no message about that.

        It lets other work run in between. Of more than FORGOTTEN_MAX tasks it leaves the rest for the next call.
        """
        oldest = now - timedelta(seconds=keep_s)
        self.forgotten.drop_expired(keep_s=keep_s, now=now)
        expired = self.index.written_before(oldest, limit=FORGOTTEN_MAX)
        for first in range(0, len(expired), FORGOTTEN_AT_ONCE):
            for task_id in expired[first : first + FORGOTTEN_AT_ONCE]:
                row = self.index.get(task_id)
                if row is not None and row.written_at < oldest:  # not written anew meanwhile
                    self._forget(task_id)
            await asyncio.sleep(0)

    def _forget(self, task_id: str) -> None:
        row = self.index.pop(task_id)
        self._snapshots.pop(task_id)
        self.work_queues.forget(task_id)
        self.deadlines.forget(task_id)
        self.expiries.forget(task_id)
        self.readers.publish_lost(task_id)
        self.recent.forget(task_id)
        if row is not None:
            self.feeds.gone(row)


def named_paths(task: GenerationTask) -> tuple[str, ...]:
    """The objects that *task* owns: its image, and its video with its thumbnail, finished or being made; none if it was
    refused."""
    if task.was_refused:
        return ()
    if not task.status.is_terminal:
        made: tuple[str | None, ...] = (task.video_path, task.thumbnail_path)
    elif task.video is not None:
        made = (task.video.path, None if task.video.thumbnail is None else task.video.thumbnail.path)
    else:
        made = ()
    return tuple([path for path in (task.image_path, *made) if path is not None])
