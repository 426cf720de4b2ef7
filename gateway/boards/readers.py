"""The long-polls and event streams that wait for news of a task. They wait in memory, and cost the server nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Final

from contracts.tasks import TaskStatus
from gateway.boards.snapshots import Snapshot, Snapshots
from gateway.boards.work_queues import WorkQueues

SUBSCRIBER_QUEUE_MAX: Final = 64
# The readers of this many tasks are woken in one go; then requests run. 500 in one go would hold up every request.
MOVED_AT_ONCE: Final = 50


class _Reader:
    """One request that waits for news of one task.

    *seen_ahead* is how many tasks stood ahead in the news that it read last; None if places are no news to it.
    """

    __slots__ = ("news", "seen_ahead")

    def __init__(self) -> None:
        self.news: asyncio.Queue[Snapshot | None] = asyncio.Queue(SUBSCRIBER_QUEUE_MAX)
        self.seen_ahead: int | None = None

    def offer(self, news: Snapshot | None) -> None:
        """Puts *news* behind what is unread. Where that is too much, the oldest of it makes room."""
        if self.news.full():
            self.news.get_nowait()
        self.news.put_nowait(news)


class Readers:
    """The readers of every task. The task board publishes what it learns; `close` wakes all that wait."""

    def __init__(self, snapshots: Snapshots, work_queues: WorkQueues) -> None:
        self._snapshots = snapshots
        self._work_queues = work_queues
        self._readers: dict[str, set[_Reader]] = {}
        self._moves_announced = 0
        self._closed = False

    def publish(self, snapshot: Snapshot) -> None:
        """Wakes the readers of the task with its new *snapshot*."""
        for reader in self._readers.get(snapshot.task.id, ()):
            reader.offer(snapshot)

    def publish_lost(self, task_id: str) -> None:
        """Wakes the readers of *task_id*, whose record is gone."""
        for reader in self._readers.get(task_id, ()):
            reader.offer(None)

    def close(self) -> None:
        """Wakes every reader; none waits from now on."""
        self._closed = True
        for task_id in self._readers:
            self.publish_lost(task_id)

    async def changes(self, snapshot: Snapshot, *, idle_s: float) -> AsyncIterator[Snapshot | None]:
        """The task as it is now, then every change, until it has ended, or its record is gone, or `close` is called.

        While the task waits, another place in its queue is a change too, when `announce_moves` is called. This yields
        None after every *idle_s* without a change. A reader that falls far behind misses snapshots in between, but
        never the last one.
        """
        with self._reader(snapshot.task.id) as reader:
            latest = self._latest(snapshot)
            reader.seen_ahead = self._work_queues.ahead_of(latest.task)
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
                ahead = self._work_queues.ahead_of(following.task)
                if (following.revision, ahead) != (latest.revision, reader.seen_ahead):
                    latest, reader.seen_ahead = following, ahead
                    yield latest

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

    async def announce_moves(self) -> None:
        """Wakes those readers of `changes` whose task stands elsewhere in its queue than in the news that they read.

        It costs nothing while no task has moved, and lets other work run in between.
        """
        if self._moves_announced == (moves := self._work_queues.moves):
            return
        self._moves_announced = moves
        for number, task_id in enumerate(tuple(self._readers), 1):
            self._announce_place(task_id)
            if number % MOVED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _announce_place(self, task_id: str) -> None:
        snapshot = self._snapshots.get(task_id)
        if snapshot is None or snapshot.task.status is not TaskStatus.PENDING:
            return
        ahead = self._work_queues.ahead_of(snapshot.task)
        for reader in self._readers.get(task_id, ()):
            # a reader with unread news sees the place as it is when it reads them
            if reader.seen_ahead not in (None, ahead) and reader.news.empty():
                reader.offer(snapshot)

    def _latest(self, snapshot: Snapshot) -> Snapshot:
        # between the caller's look and its subscription the task may have moved
        return self._snapshots.get(snapshot.task.id) or snapshot

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


def _is_news(snapshot: Snapshot, seen_revision: int | None) -> bool:
    if seen_revision is not None and snapshot.revision != seen_revision:
        return True
    return snapshot.task.status.is_terminal
