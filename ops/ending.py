"""Ends asyncio tasks for certain."""

import asyncio
from typing import Any, Final

RETRY_S: Final = 0.05


async def end(*tasks: asyncio.Future[Any] | None) -> None:
    """Cancels *tasks* and returns when all of them are over; what they raise is dropped.

    One cancel is not enough: Python 3.11's `asyncio.wait_for`, which nats-py uses, swallows a cancel that meets a
    result, and a loop around it would then go on for ever.
    """
    open_tasks = {task for task in tasks if task is not None}
    while open_tasks:
        for task in open_tasks:
            task.cancel()
        done, open_tasks = await asyncio.wait(open_tasks, timeout=RETRY_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # retrieved, so that asyncio does not warn of it
