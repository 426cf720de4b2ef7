"""Streams of earlier versions, which are removed once nobody uses them (ADR 0037)."""

import asyncio
from typing import Final

from msgspec import Struct
from nats.js.errors import NotFoundError

from contracts.topology import RETIRED
from ops.nats.errors import translated
from ops.nats.link import NatsLink

# A gateway of that version asks for due timers again as soon as it has an answer: one of several looks finds it
# waiting.
LOOKS: Final = 5
LOOK_EVERY_S: Final = 0.05


class Retired(Struct, frozen=True):
    """A stream that the server has and this version does not use. *used_by* says who still uses it; None where nobody
    does."""

    name: str
    used_by: str | None

    def __str__(self) -> str:
        if self.used_by is None:
            return f"{self.name}: of an earlier version, and not used any more"
        return (
            f"{self.name}: of an earlier version, and {self.used_by}; "
            "run `warmlane provision` again when every gateway and worker is new"
        )


async def retired(link: NatsLink) -> list[Retired]:
    """What the server still has of earlier versions. Changes nothing. Raises TransportUnavailable."""
    return [Retired(name, await _used_by(link, name)) for name in RETIRED if await link.streams.exists(name)]


async def retire(link: NatsLink) -> list[Retired]:
    """Removes what nobody uses any more, and returns all that was there, as it was found. Raises
    TransportUnavailable."""
    found = await retired(link)
    for each in found:
        if each.used_by is None:
            await link.streams.remove(each.name)
    return found


async def _used_by(link: NatsLink, name: str) -> str | None:
    """Who uses *name*. An idle worker of an earlier version leaves no trace: it sets a timer only when it claims."""
    if await link.streams.subjects(name, "deadline.set.>"):
        return "timers of processes of that version are set there"
    for _ in range(LOOKS):
        with translated(name):
            try:
                consumers = await link.streams.manager.consumers_info(name)
            except NotFoundError:
                return None
        if any(consumer.num_waiting for consumer in consumers):
            return "a gateway of that version looks at it"
        await asyncio.sleep(LOOK_EVERY_S)
    return None
