"""The two waits of every loop here: for an event, with a time limit, and for some work that may be given up."""

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine
from typing import Any, Generic, TypeVar

from ops.ending import end

T = TypeVar("T")


class Came(Generic[T]):
    """The result of some work that was not given up."""

    def __init__(self, value: T) -> None:
        self.value = value


async def set_within(seconds: float, event: asyncio.Event) -> bool:
    """Waits until *event* is set, *seconds* at most, and returns whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def unless(given_up: Awaitable[object], work: Coroutine[Any, Any, T]) -> Came[T] | None:
    """The outcome of *work*; None where *given_up* was over first, and *work* was cancelled.

    Both are over when this returns. If the result of *work* was there before the cancel reached it, the result counts:
    a message that was fetched is not lost. What *work* raises is raised here. If *given_up* raises, *work* is given up.
    """
    working = asyncio.create_task(work)
    giving_up = asyncio.ensure_future(given_up)
    try:
        await asyncio.wait({working, giving_up}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(*(task for task in (working, giving_up) if not task.done()))
    return None if working.cancelled() else Came(working.result())
