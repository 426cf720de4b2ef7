"""Waits for what a process needs to begin and others provide: nats-server, its streams, the first key.

An operator starts the parts of a system in any order. If a process ended instead of waiting, its supervisor would
restart it with growing backoff, and it would look as if it had crashed.
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
    """Calls *begin* until it no longer raises one of AWAITED, and returns what it returned.

    The text of such an error says what to do. Each new text is logged and passed to *on_wait*; a worker's `/readyz`
    shows it meanwhile. Raises LeftWaiting as soon as *stop* is set, and every other error of *begin*. *begin* must
    leave nothing open when it raises or is cancelled.
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
    """Waits, as `once_there`, for a server that has what *require* asks for, and returns a connection to it. Raises
    what *require* does."""

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
    """Ends the block with LeftWaiting once *stop* is set, as `asyncio.timeout` ends a block at a deadline."""
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
