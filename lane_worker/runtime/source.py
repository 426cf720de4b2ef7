"""Where a work loop gets its next message: whoever serves a queue chooses it there."""

from typing import Protocol

from msgspec import Struct
from nats.aio.msg import Msg

from contracts.tasks import OrderDecision


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
