"""Tasks held in memory by watching KV `tasks`: live ones and the newest finished ones whole, older ones as a row.

Long-polls and event streams wait here, so that none of them costs the server anything.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

from contracts.tasks import GenerationTask, TaskStatus
from gateway.boards.task_index import Place, TaskIndex, TaskRow
from gateway.boards.work_queues import WorkQueues
from ops.nats.bucket import Versioned
from ops.nats.link import NatsLink
from ops.nats.records import Change, KnownTask, Moved, TaskRecords

FINISHED_MAX: Final = 1_000
SUBSCRIBER_QUEUE_MAX: Final = 64
# To forget one takes some 10 µs; all of a day at once would hold up every request.
FORGOTTEN_AT_ONCE: Final = 200
FORGOTTEN_MAX: Final = 100_000
# Of so many tasks the readers are woken before others run: 500 at once would hold up every request.
MOVED_AT_ONCE: Final = 50


class Snapshot(Struct, frozen=True, gc=False):
    """A task at one revision of its record."""

    task: GenerationTask
    revision: int


class _Reader:
    """Somebody who waits for news of one task.

    *told_ahead*: for one who also hears of another place in the queue, how many stood ahead when they heard last.
    """

    __slots__ = ("news", "told_ahead")

    def __init__(self) -> None:
        self.news: asyncio.Queue[Snapshot | None] = asyncio.Queue(SUBSCRIBER_QUEUE_MAX)
        self.told_ahead: int | None = None


class TaskBoard:
    """Every task that has a record. `start` it before use; `close` it to wake all that wait.

    *work_queues* says who waits and runs on each work queue.
    """

    def __init__(self) -> None:
        self.work_queues = WorkQueues()
        self._index = TaskIndex()
        self._live: dict[str, Snapshot] = {}
        self._finished: OrderedDict[str, Snapshot] = OrderedDict()
        self._readers: dict[str, set[_Reader]] = {}
        self._moves_told = 0
        self._closed = False
        # while the bucket is told anew: what is in memory, and was not told yet
        self._untold: set[str] = set()
        self._told_anew: list[Callable[[], None]] = []

    async def start(self, link: NatsLink) -> None:
        """Watches the bucket; returns once what is there now has been seen. Raises TransportUnavailable."""
        self._records = TaskRecords(link)
        self._watch = await self._records.watch(self.on_entry, on_again=self._again, on_whole=self._whole)
        await self._watch.wait()

    def news_age_s(self) -> float:
        """The greatest age of what is in memory, in seconds; 0 while every change arrives at once."""
        return self._watch.age_s()

    def close(self) -> None:
        """Wakes everybody who waits; nobody waits any more."""
        self._closed = True
        for reader in [reader for readers in self._readers.values() for reader in readers]:
            _offer(reader, None)

    def on_entry(self, entry: Versioned[GenerationTask]) -> None:
        """A record changed."""
        if entry.is_deleted:
            self._forget(entry.key)
            return
        if self._is_known(entry.key, entry.revision):
            return  # most often: this gateway wrote it
        known = self._index.get(entry.key)
        if known is not None and (known.revision, known.written_at) == (entry.revision, entry.time):
            self._untold.discard(entry.key)
            return  # told anew, and as it was
        if entry.value is not None:
            self.record(entry.value, entry.revision, entry.time)

    def record(self, task: GenerationTask, revision: int, written_at: datetime) -> Snapshot:
        """Takes in a record that was read or written; an older revision than the known one changes nothing."""
        snapshot = Snapshot(task, revision)
        if self._is_known(task.id, revision):
            return snapshot
        self._untold.discard(task.id)
        self._index.put(
            TaskRow(
                id=task.id,
                caller=task.caller,
                model=task.model,
                status=task.status,
                created_at=task.created_at,
                written_at=written_at,
                revision=revision,
                paths=named_paths(task),
            )
        )
        if task.status.is_terminal:
            self._live.pop(task.id, None)
            self._finished[task.id] = snapshot
            if len(self._finished) > FINISHED_MAX:
                self._finished.popitem(last=False)
        else:
            self._live[task.id] = snapshot
            self._finished.pop(task.id, None)
        self.work_queues.take_in(task)
        for reader in self._readers.get(task.id, ()):
            _offer(reader, snapshot)
        return snapshot

    def _is_known(self, task_id: str, revision: int) -> bool:
        """Whether that revision or a newer one is in memory; one that may be lost does not count (ADR 0030)."""
        known = self._index.get(task_id)
        return known is not None and known.revision >= revision and task_id not in self._untold

    def _again(self) -> None:
        self._untold = self._index.ids()

    def _whole(self) -> None:
        lost, self._untold = self._untold, set()
        for task_id in lost:
            self._forget(task_id)
        for callback in self._told_anew:
            callback()

    def on_told_anew(self, callback: Callable[[], None]) -> None:
        """*callback* is called whenever the bucket was read once more from its start."""
        self._told_anew.append(callback)

    def live(self) -> list[Snapshot]:
        """The tasks that have not ended."""
        return list(self._live.values())

    async def get(self, task_id: str) -> Snapshot | None:
        """The task's newest known snapshot; asks the server for one that is not in memory.

        Raises TransportUnavailable.
        """
        return self._live.get(task_id) or self._finished.get(task_id) or await self.read(task_id)

    async def read(self, task_id: str) -> Snapshot | None:
        """The task's snapshot from the server, whatever is in memory; None where no record is, or none to be read.

        Raises TransportUnavailable.
        """
        before = self._index.get(task_id)
        entry = await self._records.get(task_id)
        if entry is None or entry.is_deleted:
            if before is not None and self._index.get(task_id) is before:
                self._forget(task_id)
            return None
        return None if entry.value is None else self.record(entry.value, entry.revision, entry.time)

    async def move(
        self,
        task_id: str,
        change: Change,
        *,
        known: KnownTask | None = None,
        around: Callable[[GenerationTask], AbstractContextManager[object]] = lambda _: nullcontext(),
    ) -> Moved | None:
        """`TaskRecords.move`, of which what is read and written is taken in. Raises TransportUnavailable."""
        moved = await self._records.move(task_id, change, known=known, read=self.read, around=around)
        if moved is not None and moved.before is not None:
            self.record(moved.task, moved.revision, datetime.now(UTC))
        return moved

    async def changes(self, snapshot: Snapshot, *, idle_s: float) -> AsyncIterator[Snapshot | None]:
        """The task as it is now, then every change, until it has ended, or its record is gone, or the board is closed.

        As long as it waits, another place in its queue is a change too, when `tell_moves` is called. None is yielded
        after every *idle_s* without a change. A reader that falls far behind misses snapshots in between, never the
        last one.
        """
        with self._reader(snapshot.task.id) as reader:
            latest = self._latest(snapshot)
            reader.told_ahead = self.work_queues.ahead_of(latest.task)
            yield latest
            while not (latest.task.status.is_terminal or self._closed):
                try:
                    async with asyncio.timeout(idle_s):
                        following = await reader.news.get()
                except TimeoutError:
                    yield None
                    continue
                if following is None:
                    return
                ahead = self.work_queues.ahead_of(following.task)
                if (following.revision, ahead) != (latest.revision, reader.told_ahead):
                    latest, reader.told_ahead = following, ahead
                    yield latest

    async def tell_moves(self) -> None:
        """Wakes those readers of `changes` whose task stands elsewhere in its queue than they heard last.

        It costs nothing while nobody moved. Others run in between.
        """
        if self._moves_told == (moves := self.work_queues.moves):
            return
        self._moves_told = moves
        for number, task_id in enumerate(tuple(self._readers), 1):
            self._tell_place(task_id)
            if number % MOVED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _tell_place(self, task_id: str) -> None:
        snapshot = self._live.get(task_id)
        if snapshot is None or snapshot.task.status is not TaskStatus.PENDING:
            return
        ahead = self.work_queues.ahead_of(snapshot.task)
        for reader in self._readers.get(task_id, ()):
            # one with unread news sees the place of then, when it comes to read it
            if reader.told_ahead not in (None, ahead) and reader.news.empty():
                _offer(reader, snapshot)

    async def wait(self, snapshot: Snapshot, *, seen_revision: int | None, timeout_s: float) -> Snapshot | None:
        """The task when it ended, or when its revision is not *seen_revision*, or as it is after *timeout_s*.

        None when its record is gone.
        """
        with self._reader(snapshot.task.id) as reader, contextlib.suppress(TimeoutError):
            snapshot = self._latest(snapshot)
            async with asyncio.timeout(timeout_s):
                while not (_is_news(snapshot, seen_revision) or self._closed):
                    following = await reader.news.get()
                    if following is not None:
                        snapshot = following
                    elif not self._closed:
                        return None
        return snapshot

    def _latest(self, snapshot: Snapshot) -> Snapshot:
        # between the caller's look and its subscription the task may have moved
        return self._live.get(snapshot.task.id) or self._finished.get(snapshot.task.id) or snapshot

    def newest(
        self,
        *,
        statuses: frozenset[TaskStatus] | None,
        models: frozenset[str] | None,
        caller: str | None,
        before: Place | None,
        limit: int,
    ) -> list[Place]:
        """At most *limit* tasks that match, newest first, starting after *before*, each as its place in the listing."""
        return self._index.newest(statuses=statuses, models=models, caller=caller, before=before, limit=limit)

    def named_paths_of(self, task_id: str) -> tuple[str, ...]:
        """The objects that the record of *task_id* names; none without a record."""
        row = self._index.get(task_id)
        return () if row is None else row.paths

    async def drop_expired(self, *, keep_s: float, now: datetime) -> None:
        """Forgets tasks whose record the server has dropped by age; expiry sends no message that would tell.

        Others run in between. Of more than FORGOTTEN_MAX the rest is left for the next call.
        """
        oldest = now - timedelta(seconds=keep_s)
        expired = self._index.written_before(oldest, limit=FORGOTTEN_MAX)
        for first in range(0, len(expired), FORGOTTEN_AT_ONCE):
            for task_id in expired[first : first + FORGOTTEN_AT_ONCE]:
                row = self._index.get(task_id)
                if row is not None and row.written_at < oldest:  # not written anew meanwhile
                    self._forget(task_id)
            await asyncio.sleep(0)

    def _forget(self, task_id: str) -> None:
        self._index.pop(task_id)
        self._live.pop(task_id, None)
        self._finished.pop(task_id, None)
        self._untold.discard(task_id)
        self.work_queues.forget(task_id)
        for reader in self._readers.get(task_id, ()):
            _offer(reader, None)

    @contextlib.contextmanager
    def _reader(self, task_id: str) -> Iterator[_Reader]:
        reader = _Reader()
        self._readers.setdefault(task_id, set()).add(reader)
        try:
            yield reader
        finally:
            self._readers[task_id].discard(reader)
            if not self._readers[task_id]:
                del self._readers[task_id]


def named_paths(task: GenerationTask) -> tuple[str, ...]:
    """The objects that *task* owns: its image, and its video or the one that is being made; none if it was refused."""
    if task.was_refused:
        return ()
    video = task.video.path if task.video else None
    if not task.status.is_terminal:
        video = task.video_path
    return tuple([path for path in (task.image_path, video) if path is not None])


def _is_news(snapshot: Snapshot, seen_revision: int | None) -> bool:
    if seen_revision is not None and snapshot.revision != seen_revision:
        return True
    return snapshot.task.status.is_terminal


def _offer(reader: _Reader, news: Snapshot | None) -> None:
    if reader.news.full():
        reader.news.get_nowait()
    reader.news.put_nowait(news)
