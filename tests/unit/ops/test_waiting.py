"""The two waits that the loops of every process share."""

import asyncio

import pytest

from ops.waiting import set_within, unless


async def test_an_event_is_waited_for_no_longer_than_allowed() -> None:
    event = asyncio.Event()
    assert not await set_within(0.0, event)
    asyncio.get_running_loop().call_soon(event.set)
    assert await set_within(60.0, event)
    assert await set_within(0.0, event)


async def test_work_that_ends_first_gives_its_value_and_leaves_no_waiter() -> None:
    stop, before = asyncio.Event(), asyncio.all_tasks()
    came = await unless(stop.wait(), asyncio.sleep(0, "value"))
    assert came is not None
    assert came.value == "value"
    assert asyncio.all_tasks() == before


async def test_work_that_is_given_up_is_over_before_the_wait_returns() -> None:
    stop, ended = asyncio.Event(), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    asyncio.get_running_loop().call_soon(stop.set)
    assert await unless(stop.wait(), work()) is None
    assert ended == ["cleaned up"]


async def test_a_result_that_met_the_cancel_is_kept() -> None:
    stop = asyncio.Event()
    stop.set()

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "fetched"  # as Python 3.11's wait_for does
        raise AssertionError

    came = await unless(stop.wait(), work())
    assert came is not None
    assert came.value == "fetched"


async def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await unless(asyncio.Event().wait(), work())


async def test_a_wait_that_is_cancelled_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    waiting = asyncio.create_task(unless(asyncio.Event().wait(), asyncio.Event().wait()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asyncio.all_tasks() == before
