"""Reports which streams take no writes, and learns the same from the reports of other processes (ADR 0031).

A process whose writes were not answered checks whether the server answers a read of the same stream. If it does, the
process publishes that the stream refuses, in a message that is not stored.
"""

import asyncio
import time
from typing import Final

import structlog

from contracts.topology import REFUSING_SUBJECTS, refusing_subject
from ops.nats.link import NatsLink
from ops.nats.write_health import Refusals, Why

# A process publishes its report again this often; `Refusals` believes a report for a few times as long.
LOOK_EVERY_S: Final = 1.0

log = structlog.get_logger("nats")

ADVICE: Final[dict[Why, str]] = {
    "silent": "make room on the disk of nats-server, and restart it; `warmlane up` does the second by itself",
    "limit": "its max_file_store is reached: shorten --keep, or raise it in nats.conf",
}


async def report_refusals(link: NatsLink) -> None:
    """Looks at what became of this process's writes, and publishes which streams refuse, until cancelled."""
    reported: set[str] = set()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        suspects = link.messages.writes.suspects(time.monotonic())
        for stream, why in suspects.items():
            if why == "silent" and not await link.streams.has_leader(stream):
                continue  # the whole server is away or suspended
            if stream not in reported:
                log.error("stream_refuses_writes", stream=stream, why=why, advice=ADVICE[why])
                reported.add(stream)
            await link.core.publish(refusing_subject(stream), why.encode())
        for stream in reported - suspects.keys():
            log.info("stream_takes_writes", stream=stream)
        reported &= suspects.keys()


async def learn_refusals(link: NatsLink, refusals: Refusals) -> None:
    """From now on *refusals* gets the reports of every process. Raises TransportUnavailable."""

    def heard(subject: str, payload: bytes) -> None:
        why: Why = "limit" if payload == b"limit" else "silent"
        refusals.hear(subject.partition(".")[2], why, time.monotonic())

    await link.core.subscribe(REFUSING_SUBJECTS, heard)
