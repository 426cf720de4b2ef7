"""The hand of a lane: a free lane looks at what waits in the queue of its model, takes one task, and naks the rest at
once (ADR 0042).

Lanes of one model share their queue, and any of them may be free next. So no lane keeps a message that it does not
start: the server redelivers it to the next lane that looks, which may be the same one.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final

from msgspec.structs import replace
from nats.aio.msg import Msg

from contracts.order import Policy, Waiting, waiting_of
from contracts.tasks import UnreadableTask
from contracts.topology import LANE_LOOK_MAX, WORK_CONSUMER
from lane_worker.residence.residence import Residence
from lane_worker.runtime.order import Order, OrderedRunner
from lane_worker.runtime.outcome import Runner
from lane_worker.runtime.queued import queued_task
from lane_worker.runtime.source import NextMessage, Source
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.pull import Pull

# Messages that wait come within this time, unless another lane has taken some of them.
LOOK_S: Final = 0.1
# After a look that found one class and one caller, a lane takes tasks in the order of arrival for this long: a lane
# whose tasks take milliseconds does not look before each.
ALIKE_S: Final = 0.25


class LaneHand:
    """The `Source` of a lane that serves *stream*: *order* chooses the next of the oldest LANE_LOOK_MAX messages."""

    def __init__(self, link: NatsLink, stream: str, *, order: Order) -> None:
        self._link = link
        self._stream = stream
        self._order = order
        self._pull: Pull | None = None
        self._alike_until_s = 0.0

    @property
    def trouble(self) -> str | None:
        """As `Source.trouble`."""
        return None if self._pull is None else self._pull.trouble

    async def next(self) -> NextMessage | None:
        """As `Source.next`. A message that comes for a cancelled call is delivered again after ack_wait."""
        if self._pull is None:
            self._pull = await self._link.messages.pull(self._stream, WORK_CONSUMER)
        hand = await self._pull.fetch()
        chosen: NextMessage | None = None
        try:
            if hand:
                hand = [*hand, *await self._others(self._pull, hand[0])]
                chosen = self._choose(hand)
        finally:
            await _give_back(message for message in hand if chosen is None or message is not chosen.message)
        return chosen

    async def close(self) -> None:
        """As `Source.close`."""
        if self._pull is not None:
            await self._pull.close()

    async def _others(self, pull: Pull, first: Msg) -> list[Msg]:
        """What waits beside *first*."""
        if time.monotonic() < self._alike_until_s:
            return []
        count = first.metadata.num_pending
        if first.metadata.num_delivered > 1:
            # a lane gave it back, and perhaps others with it, which the server counts as delivered
            try:
                count = (await self._link.streams.depth(self._stream)).messages - 1
            except TransportUnavailable:
                return []
        if count < 1:
            return []
        return await pull.fetch(min(count, LANE_LOOK_MAX - 1), timeout_s=LOOK_S)

    def _choose(self, hand: list[Msg]) -> NextMessage:
        messages: dict[str, Msg] = {}
        waiting: list[Waiting] = []
        for message in hand:
            try:
                task = queued_task(message)
            except UnreadableTask:
                return NextMessage(message)  # the work loop reports it, and terminates or naks it
            messages[task.message_id] = message
            # a lane takes an overdue task as well: the first to move its record wins (ADR 0007)
            waiting.append(replace(waiting_of(task), deadline_s=math.inf))
        if len(hand) == 1:
            self._order.take_only(waiting[0])
            return NextMessage(hand[0])
        is_alike = len({(task.priority, task.caller) for task in waiting}) == 1
        self._alike_until_s = time.monotonic() + ALIKE_S if is_alike else 0.0
        found = self._order.choose(waiting, now=datetime.now(UTC))
        assert found is not None  # none has a deadline
        task_id, decision = found
        return NextMessage(messages[task_id], decision)


async def _give_back(messages: Iterable[Msg]) -> None:
    for message in messages:
        with contextlib.suppress(Exception):  # it is delivered again after ack_wait
            await message.nak()


def in_order(
    link: NatsLink, stream: str, policy: Policy
) -> Callable[[str, Residence, Runner], tuple[Source, OrderedRunner]]:
    """For `assemble`: a lane that serves *stream* by *policy*."""

    def ordered(_: str, residence: Residence, runner: Runner) -> tuple[Source, OrderedRunner]:
        order = Order(policy, resident=lambda: None if residence.resident is None else residence.resident.model)
        return LaneHand(link, stream, order=order), OrderedRunner(runner, order)

    return ordered
