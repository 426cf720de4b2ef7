"""A task ends even when it swallows a cancel, as nats-py's requests can on Python 3.11."""

import asyncio

from ops.ending import end


async def test_a_swallowed_cancel_is_repeated() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    async def failing() -> None:
        raise ValueError

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(failing())]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await end(*tasks, None)
    assert all(task.done() for task in tasks)
    assert swallowed == 3
