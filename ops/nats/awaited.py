"""Waiting for what a process cannot begin without and others bring: nats-server, its streams, the first key.

Whoever starts a system starts its parts in any order. A process that ended instead of waiting would be started again,
after pauses that grow, and would look as if it had crashed.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

import structlog

from ops.ending import end
from ops.nats.access import NatsAccess
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.provisioning import NoKeys, NotProvisioned
from ops.telemetry.probes import STARTING, ProcessHealth, judged_by
from ops.waiting import set_within

AWAITED: Final = (TransportUnavailable, NotProvisioned, NoKeys)
RETRY_S: Final = 0.5

T = TypeVar("T")

log = structlog.get_logger("start")


class LeftWaiting(Exception):
    """The process was asked to leave while it waited."""


async def once_there(
    begin: Callable[[], Awaitable[T]], *, stop: asyncio.Event, on_wait: Callable[[str], None] = lambda _: None
) -> T:
    """What *begin* returns. It is called again and again while it raises one of AWAITED, of which each text is logged
    once, and given to *on_wait*: it says what to do. So does `/readyz` of a worker meanwhile.

    Raises LeftWaiting as soon as *stop* is set, and whatever else *begin* raises. *begin* leaves nothing open when it
    raises, also when it is cancelled.
    """
    begun_s, waits_for = time.monotonic(), ""

    def judge() -> ProcessHealth:
        return ProcessHealth(False, "waiting", waits_for) if waits_for else STARTING

    with judged_by(judge):
        async with _until(stop):
            while True:
                try:
                    there = await begin()
                except AWAITED as error:
                    if str(error) != waits_for:
                        waits_for = str(error)
                        log.warning("waiting", reason=waits_for)
                        on_wait(waits_for)
                    await set_within(RETRY_S, stop)
                else:
                    if waits_for:
                        log.info("waited", took_s=round(time.monotonic() - begun_s, 1))
                    return there


async def linked_once_there(
    nats: NatsAccess, *, name: str, require: Callable[[NatsLink], Awaitable[None]], stop: asyncio.Event
) -> NatsLink:
    """A connection to a server that has what *require* asks for, as `once_there`. Raises what *require* does."""

    async def begin() -> NatsLink:
        link = await NatsLink.connect(nats, name=name)
        try:
            await require(link)
        except BaseException:
            await link.close()
            raise
        return link

    return await once_there(begin, stop=stop)


@contextlib.asynccontextmanager
async def _until(stop: asyncio.Event) -> AsyncIterator[None]:
    """Ends the block with LeftWaiting once *stop* is set, as `asyncio.timeout` ends one at a moment."""
    task = asyncio.current_task()
    assert task is not None
    is_cancelled = False

    def cancel(waiting: asyncio.Task[object]) -> None:
        nonlocal is_cancelled
        if not waiting.cancelled():
            is_cancelled = True
            task.cancel()

    stopping = asyncio.create_task(stop.wait())
    stopping.add_done_callback(cancel)
    try:
        yield
        if is_cancelled:
            await asyncio.sleep(0)  # the cancel came too late for the block, and arrives here
    except asyncio.CancelledError:
        if is_cancelled and task.uncancel() == 0:
            raise LeftWaiting from None
        raise
    finally:
        stopping.remove_done_callback(cancel)
        await end(stopping)
