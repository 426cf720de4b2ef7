"""Leaving on purpose: the task in hand is finished within a bound, or handed back (design §6)."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from ops.ending import end

# After the drain's bound, how long the task in hand may take to stop and to give its lease back.
LEAVE_S: Final = 15.0

log = structlog.get_logger("leaving")


async def drain(serving: asyncio.Task[None], *, drain_s: float, leave: Callable[[str], None]) -> None:
    """Waits *drain_s* for *serving* to end by itself, then calls *leave* to stop its task, then cancels it.

    *serving* is over when this returns.
    """
    done, _ = await asyncio.wait({serving}, timeout=drain_s)
    if not done:
        log.warning("drain_too_long", after_s=drain_s)
        leave("the worker is leaving")
        done, _ = await asyncio.wait({serving}, timeout=LEAVE_S)
    if not done:
        # the lease runs out, and the sweeper gives the task to another worker
        log.error("drain_abandoned", after_s=drain_s + LEAVE_S)
        await end(serving)
