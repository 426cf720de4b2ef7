"""What a process reports of its connection to nats-server: whether it is up, and how far the clocks are apart."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

import structlog

from ops.background import Background
from ops.ending import end
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.nats.link import NatsLink
from ops.nats.refusals import report_refusals
from ops.nats.server_clock import MAX_SKEW_S
from ops.telemetry.instruments import observing
from ops.telemetry.metrics import background_trouble, clock_skew, nats_connected
from ops.telemetry.unreadable import Role, begin

LOOK_EVERY_S: Final = 60.0
# The server notifies nobody of a purge. Each look is a small question for each bucket that the process follows.
EMPTIED_EVERY_S: Final = 5.0
# The pause after a measurement that failed.
RETRY_S: Final = 5.0

log = structlog.get_logger("nats")


@contextlib.asynccontextmanager
async def reporting_on(link: NatsLink, role: Role, background: Background | None = None) -> AsyncIterator[None]:
    """While the block runs, the metrics of this process, which has *role*, show whether *link* is connected, and how
    far the clocks are apart, measured every LOOK_EVERY_S. The process publishes which streams refuse its writes, and
    reads a bucket again that somebody purged (`Watch.look`).

    A process refuses to start with a clock that is off (`ServerClock.require`). If its clock drifts away later, the
    process only logs that: its tasks in hand are worth more than a look that comes a second late.
    """
    begin(role)
    background = background or Background()
    looking = asyncio.create_task(background.keep("clock", partial(_look, link)))
    watching = asyncio.create_task(background.keep("buckets", partial(_look_at_watches, link)))
    reporting = asyncio.create_task(background.keep("writes", partial(report_refusals, link)))
    try:
        with observing(
            {
                nats_connected: lambda: [(1.0 if link.connection.is_connected else 0.0, ())],
                background_trouble: lambda: [
                    (float(name in background.troubles), (name,)) for name in background.names
                ],
                clock_skew: lambda: [] if link.clock.skew_s is None else [(link.clock.skew_s, ())],
            }
        ):
            yield
    finally:
        await end(looking, watching, reporting)


async def _look(link: NatsLink) -> None:
    while True:
        try:
            skew_s = await link.clock.measure_skew_s()
        except (TransportUnavailable, UnusableServer):
            await asyncio.sleep(RETRY_S)
            continue
        if abs(skew_s) > MAX_SKEW_S:
            log.warning("clock_skewed", skew_s=round(skew_s, 3), limit_s=MAX_SKEW_S, advice="synchronise both with NTP")
        await asyncio.sleep(LOOK_EVERY_S)


async def _look_at_watches(link: NatsLink) -> None:
    while True:
        await asyncio.sleep(EMPTIED_EVERY_S)
        with contextlib.suppress(TransportUnavailable):
            await link.watches.look()
