"""What a lane reports of itself: every few seconds, and at once on a change or a reconnect (design §6)."""

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from contracts.lanes import InHand, LaneHeartbeat, LaneState, LeavingFor
from contracts.topology import lane_key
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import HEARTBEATS
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry.seldom import Seldom
from ops.waiting import set_within

log = structlog.get_logger("heartbeat")


class Heartbeat:
    """The heartbeat of one worker. `run` it; `set` reports a new state; `leave` is its last report."""

    def __init__(
        self,
        link: NatsLink,
        *,
        model: str,
        worker: str,
        slot: str,
        interval_s: float,
        health_age_s: Callable[[], float],
        started_at: datetime,
        in_hand: Callable[[], InHand | None] = lambda: None,
    ) -> None:
        self._bucket = Bucket(link, HEARTBEATS, reports=False)
        self._key = lane_key(model, worker)
        self._model, self._worker, self._slot = model, worker, slot
        self._interval_s = interval_s
        self._health_age_s = health_age_s
        self._in_hand = in_hand
        self._started_at = started_at
        self._warm_after_s: float | None = None
        self._detail = ""
        self._leaving_for: LeavingFor | None = None
        self._news = asyncio.Event()
        self._changes = self._published_changes = 0
        self._published = asyncio.Event()
        self.state = LaneState.STARTING
        self._seldom = Seldom()
        link.connection.on_reconnect(self._news.set)

    def set(self, state: LaneState, detail: str = "", *, leaving_for: LeavingFor | None = None) -> None:
        """The worker is in *state* now, which is reported at once."""
        if state is LaneState.WARM and self._warm_after_s is None:
            self._warm_after_s = (datetime.now(UTC) - self._started_at).total_seconds()
        if state is not self.state:
            # it changes between busy and warm with every task
            say = log.info if state.readiness is not self.state.readiness else log.debug
            say("lane_state", state=state.value, detail=detail, warm_after_s=self._warm_after_s)
        self.state, self._detail, self._leaving_for = state, detail, leaving_for
        self._changes += 1
        self._news.set()

    @property
    def detail(self) -> str:
        """The detail that was set with the state."""
        return self._detail

    async def published(self) -> None:
        """Returns once the state that was set last is published. `run` must be running."""
        while self._published_changes != self._changes:
            self._published.clear()
            await self._published.wait()

    async def run(self) -> None:
        """Reports until cancelled."""
        while True:
            self._news.clear()
            begun_s = time.monotonic()
            changes = self._changes
            try:
                await self._bucket.put(self._key, self._value())
            except TransportUnavailable as error:
                self._seldom.log(log.warning, "heartbeat_lost", error=str(error))
                await asyncio.sleep(0.2)
                continue
            self._published_changes = changes
            self._published.set()
            await set_within(max(0.0, begun_s + self._interval_s - time.monotonic()), self._news)

    async def leave(self) -> None:
        """The lane leaves on purpose. Removes its key, unless its successor has it already.

        Where the lane leaves for a quota, its last report stays until the supervisor replaces it, or it ages out.
        """
        try:
            entry = await self._bucket.get(self._key)
            if entry is None or entry.is_deleted or not self._is_mine(entry):
                return
            if self._leaving_for is None:
                await self._bucket.delete(self._key, revision=entry.revision)
            else:
                await self._bucket.update(self._key, self._value(), revision=entry.revision)
        except WrongRevision:
            return  # the successor has just reported
        except TransportUnavailable as error:
            log.warning("lane_key_left", error=str(error))  # it ages out

    def _is_mine(self, entry: Versioned[LaneHeartbeat]) -> bool:
        there = entry.value
        return there is None or (there.pid, there.started_at) == (os.getpid(), self._started_at)

    def _value(self) -> LaneHeartbeat:
        return LaneHeartbeat(
            model=self._model,
            worker=self._worker,
            state=self.state,
            health_age_s=round(self._health_age_s(), 3),
            slot=self._slot,
            pid=os.getpid(),
            started_at=self._started_at,
            warm_after_s=self._warm_after_s,
            detail=self._detail,
            leaving_for=self._leaving_for,
            in_hand=self._in_hand(),
        )
