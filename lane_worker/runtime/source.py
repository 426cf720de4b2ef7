"""Where a work loop gets its next message. Each kind of worker has a `Source` of its own, which chooses it."""

from typing import Protocol

from msgspec import Struct
from nats.aio.msg import Msg

from contracts.tasks import OrderDecision


class NextMessage(Struct, frozen=True):
    """The message of the task that comes next; *order* says why, where it was chosen among others."""

    message: Msg
    order: OrderDecision | None = None


class Source(Protocol):
    """The messages of one work queue. The caller acks, naks or terminates what `next` gives."""

    @property
    def trouble(self) -> str | None:
        """Why no message can come: the queue's consumer is gone, and cannot be made anew, or has no leader. None while
        all is well."""
        ...

    async def next(self) -> NextMessage | None:
        """The message of the task to claim next; None where none came within 2 s. Call it only while the worker can run
        a task. It may be cancelled. Raises TransportUnavailable."""
        ...

    async def close(self) -> None:
        """Takes no more messages; gives back at once what it has."""
        ...
