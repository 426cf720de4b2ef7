"""The clients that follow many tasks on one stream, and what has not been sent to them yet (ADR 0041).

A feed remembers which tasks changed, and not how: the newest state is sent when the client can take it. So a slow
client costs only an id for each of its tasks. It may miss states in between, but never the last one.

A feed's place is a revision up to which the watch of the bucket has brought everything. A gateway knows its own writes
before the watch brings them. Their revisions are no such place: an earlier write of another gateway may still come.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final, Literal

from msgspec import Struct

from contracts.generation.labels import Label
from contracts.tasks import TaskStatus
from gateway.boards.change_log import ChangeLog, TooOld
from gateway.boards.task_index import TaskRow

# So many tasks may wait to be sent on one feed. A client that is further behind lists its tasks again.
UNSENT_MAX: Final = 1_000

What = Literal["task", "left", "gone"]
Reset = Literal["too_old", "too_much", "unknown"]


class Wanted(Struct, frozen=True):
    """The tasks that a client follows: of *caller*, of *models*, in *statuses*, where None is all of them; with every
    one of *labels*."""

    caller: str | None = None
    models: frozenset[str] | None = None
    statuses: frozenset[TaskStatus] | None = None
    labels: frozenset[Label] = frozenset()

    def covers(self, row: TaskRow) -> bool:
        """Whether the task of *row* is among them, in whatever status."""
        is_of = self.caller in (None, row.caller) and (self.models is None or row.model in self.models)
        return is_of and self.labels.issubset(row.labels)

    def has(self, status: TaskStatus) -> bool:
        """Whether tasks in *status* are followed."""
        return self.statuses is None or status in self.statuses


def sent_of(wanted: Wanted, before: TaskStatus | None, after: TaskStatus) -> What | None:
    """What is sent on a feed of *wanted*, which covers the task, when its record changed. *before* is None where the
    status before is not known. Pure.

    1. Its status is one that is followed: its state.
    2. Its status was one before, or may have been: that it left.
    3. Neither: nothing.
    """
    if wanted.has(after):  # 1
        return "task"
    if before is None or wanted.has(before):  # 2
        return "left"
    return None  # 3


class News(Struct, frozen=True):
    """What is sent on a feed next: what became of which task, and *reset*, the reason why the client has to list again.

    After that, nothing is missing up to the revision *upto*; None while that is not known. *moved*: tasks that wait may
    stand elsewhere in their queue. *caught_up*: *upto* has now passed every change that was sent ahead of it.
    """

    changes: tuple[tuple[str, What], ...] = ()
    reset: Reset | None = None
    moved: bool = False
    caught_up: bool = False
    upto: int | None = None


class Feed:
    """One client that follows *wanted*. Only `Feeds` changes it."""

    def __init__(self, wanted: Wanted, upto: Callable[[], int | None]) -> None:
        self.wanted = wanted
        self._upto = upto
        self._unsent: dict[str, What] = {}
        self._reset: Reset | None = None
        self._moved = False
        self._caught_up = False
        self._is_over = False
        self._wake = asyncio.Event()

    @property
    def is_reset(self) -> bool:
        """Whether the next news says that the client has to list again."""
        return self._reset is not None

    def offer(self, task_id: str, what: What) -> None:
        """Puts *what* became of a task on the feed, in the place of what is unsent about it."""
        self._unsent.pop(task_id, None)
        self._unsent[task_id] = what
        if len(self._unsent) > UNSENT_MAX:
            self.reset("too_much")
        self._wake.set()

    def reset(self, why: Reset) -> None:
        """Changes may be missing: the client has to list again."""
        self._unsent.clear()
        self._reset = why
        self._wake.set()

    def moved(self) -> None:
        """Tasks moved up in a queue."""
        self._moved = True
        self._wake.set()

    def catch_up(self) -> None:
        """The watch has brought all that was offered."""
        self._caught_up = True
        self._wake.set()

    def end(self) -> None:
        """There will be no more news."""
        self._is_over = True
        self._wake.set()

    async def news(self, *, idle_s: float) -> News | None:
        """What there is to send, as soon as there is any; empty news after *idle_s*; None when it is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(idle_s):
                await self._wake.wait()
        if self._is_over:
            return None
        self._wake.clear()
        found = News(tuple(self._unsent.items()), self._reset, self._moved, self._caught_up, self._upto())
        self._unsent.clear()
        self._reset, self._moved, self._caught_up = None, False, False
        return found


class Feeds:
    """Every feed of one gateway. The task board reports what it learns."""

    def __init__(self, log: ChangeLog | None = None) -> None:
        self._log = log or ChangeLog()
        self._feeds: dict[str | None, set[Feed]] = {}
        # per feed, the highest revision of this gateway's own writes that was offered before the watch brought it
        self._ahead: dict[Feed, int] = {}
        self._seen_upto = 0
        self._moves_announced = 0
        self._is_whole = False
        self._is_read_again = False
        self._is_over = False

    @property
    def upto(self) -> int | None:
        """The revision up to which everything has been seen; None while the bucket is being read."""
        return self._seen_upto if self._is_whole else None

    def changed(self, before: TaskRow | None, row: TaskRow) -> None:
        """The record of a task is as in *row*, and was as in *before*, if it was known."""
        self._log.put(row.id, row.revision)
        for feed in self._of(row.caller):
            if feed.wanted.covers(row):
                what = sent_of(feed.wanted, None if before is None else before.status, row.status)
                # a task that was not known before cannot have left
                if what is not None and not (what == "left" and before is None):
                    self._offer(feed, row, what)

    def gone(self, row: TaskRow) -> None:
        """The record of *row* is gone."""
        self._log.pop(row.id)
        for feed in self._of(row.caller):
            if feed.wanted.covers(row) and feed.wanted.has(row.status):
                feed.offer(row.id, "gone")

    def seen(self, revision: int) -> None:
        """The watch has brought everything up to *revision*, or, while the bucket is read, has come to it.

        A feed that sent a change ahead of the watch now sends the id that follows from it: a client that reconnects
        with that id is not sent the change a second time.
        """
        self._seen_upto = revision
        if self._ahead:
            for feed in [feed for feed, ahead in self._ahead.items() if ahead <= revision]:
                del self._ahead[feed]
                feed.catch_up()

    def again(self) -> None:
        """The watch reads the bucket again, from its start: what was known of revisions may be wrong."""
        self._is_whole, self._is_read_again = False, True
        self._ahead.clear()
        for feed in self._every():
            feed.reset("unknown")

    def whole(self) -> None:
        """All that is in the bucket has been seen."""
        if self._is_read_again:  # an unchanged record did not count as a change
            self._log.forget(self._seen_upto)
        self._is_whole, self._is_read_again = True, False

    def announce_moves(self, moves: int) -> None:
        """Tasks that wait may stand elsewhere in their queues if *moves* has changed since the last call."""
        if moves == self._moves_announced:
            return
        self._moves_announced = moves
        for feed in self._every():
            feed.moved()

    def close(self) -> None:
        """Ends every open feed, and every later one at once."""
        self._is_over = True
        for feed in self._every():
            feed.end()

    @contextlib.contextmanager
    def following(
        self, wanted: Wanted, *, since: int | None, row_of: Callable[[str], TaskRow | None]
    ) -> Iterator[Feed]:
        """A feed of *wanted* until the block ends. It first sends what changed after the revision *since*, or that the
        client has to list again. *row_of* gives what is known of a task."""
        feed = Feed(wanted, lambda: self.upto)
        if since is not None:
            self._catch_up(feed, since, row_of)
        if self._is_over:
            feed.end()
        followers = self._feeds.setdefault(wanted.caller, set())
        followers.add(feed)
        try:
            yield feed
        finally:
            followers.discard(feed)
            self._ahead.pop(feed, None)
            if not followers and self._feeds.get(wanted.caller) is followers:
                del self._feeds[wanted.caller]

    def _catch_up(self, feed: Feed, since: int, row_of: Callable[[str], TaskRow | None]) -> None:
        """1. This gateway has not seen the revision: the bucket went back, or it is a revision of another bucket.
        2. More has changed since than is remembered.
        3. Otherwise: what changed since.
        """
        if self.upto is None or since > self.upto:  # 1
            feed.reset("unknown")
            return
        try:
            changed = self._log.after(since)
        except TooOld:  # 2
            feed.reset("too_old")
            return
        for row in map(row_of, changed):  # 3
            if row is not None and feed.wanted.covers(row):
                what = sent_of(feed.wanted, None, row.status)
                if what is not None:
                    self._offer(feed, row, what)

    def _offer(self, feed: Feed, row: TaskRow, what: What) -> None:
        feed.offer(row.id, what)
        if row.revision > self._seen_upto:
            self._ahead[feed] = max(row.revision, self._ahead.get(feed, 0))

    def _of(self, caller: str) -> list[Feed]:
        return [*self._feeds.get(None, ()), *self._feeds.get(caller, ())]

    def _every(self) -> list[Feed]:
        return [feed for feeds in self._feeds.values() for feed in feeds]
