"""Leaving on purpose: the task in hand is finished within a bound, or handed back (design §6, ADR 0004)."""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from lane_worker.forking.outcome import HostLost
from ops.ending import end

# After the drain, how long the task in hand may take to come to the end of its step, and then to be handed back.
LEAVE_S: Final = 15.0
HAND_BACK_S: Final = 10.0
LOOK_EVERY_S: Final = 0.5

log = structlog.get_logger("leaving")


async def drain(
    serving: asyncio.Task[None],
    *,
    drain_s: float,
    leave: Callable[[str], None],
    kill: Callable[[], Awaitable[None]],
    waits_for_server_s: Callable[[float], float] = lambda _: 0.0,
    unanswered_s: float = math.inf,
) -> None:
    """Waits *drain_s* for *serving* to end by itself, then calls *leave* to stop its task and hand it back.

    A step or a load that does not stop for that within LEAVE_S is ended with its host, by *kill*, and the task is
    handed back all the same. A task that only waits for a server that does not answer, such as one whose disk is full,
    gets *unanswered_s* at most; *waits_for_server_s* says for how long it has waited.
    *serving* is over when this returns.
    """
    begun_s = time.monotonic()

    async def over(within_s: float) -> bool:
        """Whether *serving* ended; ends it where it waits for the server for too long."""
        until_s = time.monotonic() + within_s
        while (now_s := time.monotonic()) < until_s:
            done, _ = await asyncio.wait({serving}, timeout=min(LOOK_EVERY_S, until_s - now_s))
            if done:
                return True
            now_s = time.monotonic()
            if min(waits_for_server_s(now_s), now_s - begun_s) >= unanswered_s:
                # the lease runs out, and the sweeper gives the task to another worker
                log.error("not_settled", unanswered_s=unanswered_s, advice="the server took no writes; see its log")
                await end(serving)
                return True
        return serving.done()

    if await over(drain_s):
        return
    log.warning("drain_too_long", after_s=drain_s)
    leave("the worker is leaving")
    if await over(LEAVE_S):
        return
    log.warning("drain_kills_the_host", after_s=drain_s + LEAVE_S)
    with contextlib.suppress(HostLost):  # the host survives even SIGKILL
        await kill()
    if not await over(HAND_BACK_S):
        # the lease runs out, and the sweeper gives the task to another worker
        log.error("drain_abandoned", after_s=drain_s + LEAVE_S + HAND_BACK_S)
        await end(serving)
