"""Retries a call whose outcome is unknown."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import stamina

from ops.nats.errors import TransportUnavailable

RETRY_S: Final = 5.0
FIRST_WAIT_S: Final = 0.05
T = TypeVar("T")


async def until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """What *call* returns. While it raises TransportUnavailable it is called again, for RETRY_S in all; then this
    raises that error.

    Every call that is retried here is idempotent: the server recognises it as the same one (design §4, Accept 2).
    """
    begun_s = time.monotonic()
    try:
        return await call()
    except TransportUnavailable:
        if time.monotonic() - begun_s >= RETRY_S:
            raise
        # nearly every call is answered: only the others pay for what retries need
        await asyncio.sleep(FIRST_WAIT_S)
    async for attempt in stamina.retry_context(
        on=TransportUnavailable,
        attempts=None,
        timeout=begun_s + RETRY_S - time.monotonic(),
        wait_initial=2 * FIRST_WAIT_S,
        wait_max=1.0,
        wait_jitter=FIRST_WAIT_S,
    ):
        with attempt:
            return await call()
    raise AssertionError("the last attempt raises")
