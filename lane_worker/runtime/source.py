"""Where a work loop gets its next message: in the order of arrival, or in one that a worker chooses."""

from typing import Protocol

from msgspec import Struct
from nats.aio.msg import Msg

from contracts.tasks import OrderDecision
from contracts.topology import WORK_CONSUMER
from ops.nats.link import NatsLink
from ops.nats.pull import Pull


class NextMessage(Struct, frozen=True):
    """The message of the task that comes next; *order* is why, where somebody chose it among others."""

    message: Msg
    order: OrderDecision | None = None


class Source(Protocol):
    """The messages of one work queue. What `next` gives is the caller's to ack, nak or terminate."""

    @property
    def trouble(self) -> str | None:
        """Why no message can come: the queue's consumer is gone, and cannot be made anew. None while all is well."""
        ...

    async def next(self) -> NextMessage | None:
        """The message of the task to claim next; None where none came within 2 s. Call it only while the worker can run
        a task. It may be cancelled. Raises TransportUnavailable."""
        ...

    async def close(self) -> None:
        """Takes no more messages; gives back at once what it has."""
        ...


class Arrivals:
    """The messages of *stream* in the order of their arrival."""

    def __init__(self, link: NatsLink, stream: str) -> None:
        self._link = link
        self._stream = stream
        self._pull: Pull | None = None

    @property
    def trouble(self) -> str | None:
        """As `Source.trouble`."""
        return None if self._pull is None else self._pull.trouble

    async def next(self) -> NextMessage | None:
        """As `Source.next`. A message that comes for a cancelled call is delivered again after ack_wait."""
        if self._pull is None:
            self._pull = await self._link.messages.pull(self._stream, WORK_CONSUMER)
        messages = await self._pull.fetch()
        return NextMessage(messages[0]) if messages else None

    async def close(self) -> None:
        """As `Source.close`."""
        if self._pull is not None:
            await self._pull.close()
