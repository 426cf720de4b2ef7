"""The leader's hand: the messages of the degraded queue that the leader has fetched but not claimed (ADR 0038).

The leader keeps them alive with in-progress acks. A message in the hand keeps its place in the queue: nats-server
counts it until it is acked, removed or too old. So the server's limits on depth and age hold as they do where a worker
fetches one message at a time.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from contracts.order import Waiting, waiting_of
from contracts.tasks import GenerationTask, UnreadableTask
from contracts.topology import DEGRADED, DEGRADED_MAX_MSGS, TASKS, WORK_CONSUMER
from lane_worker.runtime.claim import Drop, Mine, claim_decision
from lane_worker.runtime.order import Order
from lane_worker.runtime.queued import queued_task
from lane_worker.runtime.source import NextMessage
from ops.ending import end
from ops.nats.bucket import Versioned
from ops.nats.buckets import RECORDS
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.pull import FETCH_TIMEOUT_S, Pull
from ops.waiting import set_within

# How often the leader sends an in-progress ack for each message in the hand, and reads the records. The server
# redelivers a message that it gets no ack for within `ack_wait`, 5 s: one lost ack costs nothing.
KEEP_S: Final = 1.5
# A choice waits this long at most for messages that are on their way into the hand.
GATHER_S: Final = 0.1
# A task that ended while it waited has left the queue, but stays in the hand until the leader next reads its record.
HAND_MAX: Final = 2 * DEGRADED_MAX_MSGS
# This long after a task's deadline the leader drops its message: the sweeper ends the task, and the server removes the
# message by age.
OVERDUE_S: Final = 1.0

log = structlog.get_logger("hand")


class Fetched(Struct, frozen=True):
    """A message in the hand, and the task that it carries."""

    message: Msg
    task: GenerationTask


class Hand:
    """The `Source` of a leader: it holds all the messages that wait, and *order* chooses the next.

    *leads* says whether this worker leads. The hand calls it before it hands out a message, and while it keeps
    messages. It calls *expect* again and again with the model that the order will load after the task that runs.
    """

    def __init__(
        self,
        link: NatsLink,
        *,
        order: Order,
        owner: str,
        leads: Callable[[], bool],
        expect: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._link = link
        self._order = order
        self._owner = owner
        self._leads = leads
        self._expect = expect
        self._pull: Pull | None = None
        self._fetched: dict[str, Fetched] = {}
        self._unreadable: list[Msg] = []
        self._gathers_until_s = 0.0  # a choice waits until then for messages on their way
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def trouble(self) -> str | None:
        """As `Source.trouble`."""
        return None if self._pull is None else self._pull.trouble

    async def next(self) -> NextMessage | None:
        """As `Source.next`: what *order* chooses, once every message that waits is in the hand."""
        await self._open()
        until_s = time.monotonic() + FETCH_TIMEOUT_S
        while True:
            self._news.clear()
            gathers_s = self._gathers_until_s - time.monotonic()
            following = None if gathers_s > 0 else self._choose()
            if following is not None:
                return following
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return None
            await set_within(min(left_s, gathers_s) if gathers_s > 0 else left_s, self._news)

    async def close(self) -> None:
        """As `Source.close`. A worker that leads again may call `next` again."""
        await end(*self._tasks)
        self._tasks = []
        await self._give_back()
        if self._pull is not None:
            await self._pull.close()
            self._pull = None

    def _choose(self) -> NextMessage | None:
        if self._unreadable:
            return NextMessage(self._unreadable.pop(0))
        chosen = self._order.choose(self._waiting(), now=datetime.now(UTC))
        if chosen is None or not self._leads():
            return None
        task_id, decision = chosen
        fetched = self._fetched.pop(task_id)
        self._room.set()
        return NextMessage(fetched.message, decision)

    def _waiting(self) -> list[Waiting]:
        return [waiting_of(each.task) for each in self._fetched.values()]

    async def _open(self) -> None:
        if self._tasks and not any(task.done() for task in self._tasks):
            return
        await self.close()
        self._pull = await self._link.messages.pull(DEGRADED, WORK_CONSUMER)
        self._tasks = [asyncio.create_task(each) for each in self._work(self._pull)]

    def _work(self, pull: Pull) -> tuple[Coroutine[Any, Any, None], ...]:
        return self._fill(pull), self._keep()

    async def _fill(self, pull: Pull) -> None:
        """Fetches what waits into the hand, one message at a time: a fetch of several would wait for all of them."""
        while self._leads():
            if len(self._fetched) >= HAND_MAX:
                self._room.clear()
                await self._room.wait()
            messages = await pull.fetch()
            for message in messages:
                self._take(message)
            has_room = len(self._fetched) < HAND_MAX
            has_more = has_room and bool(messages) and has_followers(messages[-1])
            self._gathers_until_s = time.monotonic() + GATHER_S if has_more else 0.0
            self._news.set()
            self._look_ahead()
        await self._give_back()

    def _take(self, message: Msg) -> None:
        try:
            task = queued_task(message)
        except UnreadableTask:
            self._unreadable.append(message)  # the work loop reports it, and terminates or naks it
            return
        # a redelivered message, for which the server got no ack in time, replaces the first
        self._fetched[task.message_id] = Fetched(message, task)

    async def _keep(self) -> None:
        """While this worker leads, keeps the hand alive, and drops from it what nobody may claim any more."""
        while self._leads():
            for fetched in list(self._fetched.values()):
                with contextlib.suppress(Exception):
                    await fetched.message.in_progress()
            with contextlib.suppress(TransportUnavailable):
                await asyncio.gather(*(self._look(each) for each in list(self._fetched.values())))
            self._look_ahead()
            await asyncio.sleep(KEEP_S)
        await self._give_back()

    async def _look(self, fetched: Fetched) -> None:
        """Drops *fetched* once its record says that the task ended, moved on or runs, or once its wait is over."""
        task, now = fetched.task, datetime.now(UTC)
        entry = await self._link.entries.get(TASKS, task.id)
        if self._fetched.get(task.message_id) is not fetched:
            return  # claimed, or delivered again, meanwhile
        record = None if entry is None else Versioned(RECORDS, entry).value
        if entry is not None and entry.value is not None and record is None:
            return  # the record cannot be read: the claim reports it
        revision = 0 if entry is None else entry.revision
        decision = claim_decision(task, record, revision=revision, owner=self._owner, now=now)
        if isinstance(decision, (Drop, Mine)):
            self._drop(task)
            with contextlib.suppress(Exception):
                await fetched.message.ack()
        elif now >= task.deadline_at + timedelta(seconds=OVERDUE_S):
            self._drop(task)

    def _look_ahead(self) -> None:
        model = self._order.next_model(self._waiting())
        if model is not None:
            self._expect(model)

    def _drop(self, task: GenerationTask) -> None:
        del self._fetched[task.message_id]
        self._room.set()

    async def _give_back(self) -> None:
        """Naks every message, so that the next leader gets it at once. Where a nak is lost, the server redelivers the
        message after 5 s."""
        messages = [each.message for each in self._fetched.values()] + self._unreadable
        self._fetched, self._unreadable, self._gathers_until_s = {}, [], 0.0
        self._room.set()
        for message in messages:
            with contextlib.suppress(Exception):
                await message.nak()
        if messages:
            log.info("hand_given_back", messages=len(messages))


def has_followers(message: Msg) -> bool:
    """Whether more messages are probably on their way behind *message*.

    Either some were never delivered, or a leader gave *message* back, and others with it.
    """
    return message.metadata.num_pending > 0 or message.metadata.num_delivered > 1
