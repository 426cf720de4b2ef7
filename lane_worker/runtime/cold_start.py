"""Writes to KV `cold_starts` how long a lane took to become warm, or that it did not (SC-006, design §6)."""

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import psutil
import structlog

from contracts.lanes import ColdStart
from lane_worker.forking.slot import process_start
from ops.nats.bucket import Bucket
from ops.nats.buckets import STARTS
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.telemetry.seldom import Seldom
from ops.waiting import set_within

RETRY_S: Final = 0.5
LEAVE_S: Final = 3.0
EVICTED: Final = "warmed up again after an eviction"

log = structlog.get_logger("cold_start")


def process_started_at(pid: int | None = None) -> datetime:
    """When this process, or process *pid*, began, before it imported anything; to a hundredth of a second by /proc.

    Raises psutil.NoSuchProcess.
    """
    now = datetime.now(UTC)
    ticks = process_start(pid or os.getpid())
    if ticks is None:
        return datetime.fromtimestamp(psutil.Process(pid).create_time(), UTC)
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return now - timedelta(seconds=age_s)


class ColdStartLog:
    """The cold starts of one worker, in the order in which they happened. Keep `run` running: it stores them."""

    def __init__(self, link: NatsLink, *, model: str, worker: str, started_at: datetime) -> None:
        self._bucket = Bucket(link, STARTS)
        self._model, self._worker = model, worker
        self._begun_at: datetime | None = started_at
        self._detail = ""
        self._failure: str | None = None
        self._unstored: list[ColdStart] = []
        self._seldom = Seldom()
        self._news = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    def demanded(self) -> None:
        """An evicted lane was asked to become warm again: that is timed from now on, as a start of its own."""
        self._begun_at, self._detail, self._failure = datetime.now(UTC), EVICTED, None

    def warm(self) -> None:
        """The lane is warm. Reports how long the start took; a lane that was warm before has nothing to report."""
        if self._begun_at is not None:
            self._report(self._begun_at, is_warm=True, detail=self._detail)
            self._begun_at = None

    def failed(self, reason: str) -> None:
        """The lane could not become warm, for *reason*. It may yet; if it leaves first, the start is given up."""
        self._failure = reason

    async def run(self) -> None:
        """Stores what there is to report, and tries until it is stored. Runs until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._unstored:
                start = self._unstored[0]
                try:
                    # the answer to an earlier try may have been lost
                    await self._bucket.put(self._model, start, message_id=f"{start.worker} {start.started_at}")
                except TransportUnavailable as error:
                    self._seldom.log(log.warning, "cold_start_not_stored", error=str(error))
                    await asyncio.sleep(RETRY_S)
                    continue
                except Exception:  # a figure that the server refuses is no reason to stop a lane
                    log.exception("cold_start_dropped")
                del self._unstored[0]
            self._settled.set()

    async def leave(self) -> None:
        """The lane leaves, so a start that failed is given up. What is not stored yet gets some seconds more.

        `run` must still be running.
        """
        if self._begun_at is not None and self._failure is not None:
            self._report(self._begun_at, is_warm=False, detail=self._failure)
            self._begun_at = None
        await set_within(LEAVE_S, self._settled)

    def _report(self, begun_at: datetime, *, is_warm: bool, detail: str) -> None:
        ended_at = datetime.now(UTC)
        self._unstored.append(
            ColdStart(
                model=self._model,
                worker=self._worker,
                started_at=begun_at,
                ended_at=ended_at,
                seconds=round((ended_at - begun_at).total_seconds(), 3) if is_warm else None,
                detail=detail,
            )
        )
        log.info("cold_start", **msgspec.structs.asdict(self._unstored[-1]))
        self._settled.clear()
        self._news.set()
