"""Leaving on purpose: the task in hand is finished within a bound, or handed back (design §6, ADR 0004)."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from lane_worker.forking.host import HostLost
from ops.ending import end

# After the drain, how long the task in hand may take to come to the end of its step, and then to be handed back.
LEAVE_S: Final = 15.0
HAND_BACK_S: Final = 10.0

log = structlog.get_logger("leaving")


async def drain(
    serving: asyncio.Task[None],
    *,
    drain_s: float,
    leave: Callable[[str], None],
    kill: Callable[[], Awaitable[None]],
) -> None:
    """Waits *drain_s* for *serving* to end by itself, then calls *leave* to stop its task and hand it back.

    A step or a load that does not stop for that within LEAVE_S is ended with its host, by *kill*, and the task is
    handed back all the same. *serving* is over when this returns.
    """
    done, _ = await asyncio.wait({serving}, timeout=drain_s)
    if not done:
        log.warning("drain_too_long", after_s=drain_s)
        leave("the worker is leaving")
        done, _ = await asyncio.wait({serving}, timeout=LEAVE_S)
    if not done:
        log.warning("drain_kills_the_host", after_s=drain_s + LEAVE_S)
        with contextlib.suppress(HostLost):  # it survives even that
            await kill()
        done, _ = await asyncio.wait({serving}, timeout=HAND_BACK_S)
    if not done:
        # the lease runs out, and the sweeper gives the task to another worker
        log.error("drain_abandoned", after_s=drain_s + LEAVE_S + HAND_BACK_S)
        await end(serving)
