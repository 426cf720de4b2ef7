"""How far a `warmlane up` has come, and what it may therefore report."""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from contracts.lanes import LaneState

DENIED: Final = frozenset({LaneState.QUOTA_DENIED, LaneState.CAPACITY_DENIED})
# When every lane is in one of these states, every lane that can be warm is warm.
SETTLED: Final = DENIED | {LaneState.WARM, LaneState.CRASH_LOOPING}
PROBE_S: Final = 2.0


class StartStage(Enum):
    """How far a start has come."""

    NOT_YET = auto()
    PARTLY = auto()
    """Requests are served, but not every part of the system runs."""
    READY = auto()


def how_started(
    lanes: Sequence[LaneState], *, wanted: int, leads: bool, answers: bool, failing: Sequence[str]
) -> StartStage:
    """The stage that a start has reached. Pure.

    1. While the gateway does not answer, or a lane is still starting: not yet.
    2. While some model may have no worker: not yet. Either all lanes have to be warm, or a degraded worker has to lead.
    3. If a part ends again and again: partly.
    4. While no degraded worker leads: not yet.
    5. Otherwise ready.
    """
    if not answers or len(lanes) < wanted or any(state not in SETTLED for state in lanes):  # 1
        return StartStage.NOT_YET
    all_warm = bool(lanes) and all(state is LaneState.WARM for state in lanes)
    if not all_warm and not leads:  # 2
        return StartStage.NOT_YET
    if failing or LaneState.CRASH_LOOPING in lanes:  # 3
        return StartStage.PARTLY
    return StartStage.READY if leads else StartStage.NOT_YET  # 4, 5


async def answers(host: str, port: int, tls: ssl.SSLContext | None) -> bool:
    """Whether a gateway answers its probe there; another program that listens does not count."""
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
        async with asyncio.timeout(PROBE_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls)
            try:
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return (await reader.readline()).split(b" ")[1:2] == [b"200"]
            finally:
                writer.close()
    return False


async def until_answers(host: str, port: int, tls: ssl.SSLContext | None) -> None:
    """Returns once `answers` is true."""
    while True:
        if await answers(host, port, tls):
            return
        await asyncio.sleep(0.05)


def unchecked() -> ssl.SSLContext:
    """For a probe of our own gateway, whose certificate names another host. The probe sends nothing secret."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
