"""What this gateway sends to the degraded worker, counted and added to the fallback episodes (KV `fallbacks`).

An episode says when requests for a model went to the degraded worker, why, and how many. Every gateway counts in memory
what it sends there, and adds it by compare-and-set about once a second. A gateway that is killed loses what it had not
yet added.
"""

import asyncio
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from msgspec import Struct

from contracts.lanes import FallbackEpisode
from contracts.tasks import RoutingDecision
from contracts.topology import demand_subject
from gateway.boards.episode_board import EpisodeBoard, KnownEpisode
from gateway.boards.lane_board import LaneBoard
from gateway.rules.episodes import Sent, advance, is_same, noted, still_to_write, with_newer
from gateway.rules.routing import ToDegraded, derive
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry import metrics
from ops.telemetry.seldom import Seldom
from ops.waiting import set_within

TICK_S: Final = 1.0
DEMAND_EVERY_S: Final = 1.0

log = structlog.get_logger("fallbacks")


class _Attempt(Struct, frozen=True):
    """A write of *written*. Once it is stored, *left* is what remains of *sent* to be written."""

    written: FallbackEpisode
    sent: tuple[Sent, ...]
    left: tuple[Sent, ...]


class Fallbacks:
    """The counts of this gateway, and the episodes of all gateways (*known*). `start` it before use, then `run` it."""

    def __init__(self, *, lanes: LaneBoard, models: Iterable[str]) -> None:
        self.known = EpisodeBoard()
        self._lanes = lanes
        self._models = tuple(models)
        self._sent: dict[str, tuple[Sent, ...]] = {}
        self._unsure: dict[str, _Attempt] = {}
        self._asked_at: dict[str, datetime] = {}
        self._gateway = uuid.uuid4().hex[:8]
        self._seldom = Seldom()
        self._link: NatsLink

    async def start(self, link: NatsLink) -> None:
        """Watches the bucket; returns once what is there now has been seen. Raises TransportUnavailable."""
        self._link = link
        await self.known.start(link)

    def as_of(self, model: str, now: datetime) -> list[FallbackEpisode]:
        """The episodes of *model* as they are at *now*, the oldest first.

        The last one is over where routing has changed since it was written, or where no gateway was there to write it.
        """
        episodes, newest = self.known.episodes(model), self.known.newest(model)
        settled = None if newest.episode is None else self._next(model, newest, (), now)[0]
        return episodes if settled is None else with_newer(episodes, settled)

    def _next(
        self, model: str, newest: KnownEpisode, sent: tuple[Sent, ...], now: datetime
    ) -> tuple[FallbackEpisode | None, tuple[Sent, ...]]:
        cause = self._lanes.cause(model, now)
        return advance(
            newest.episode, sent, model=model, gateway=self._gateway, cause=cause, now=now, vouched_at=newest.at
        )

    async def sent(self, model: str, decision: RoutingDecision, *, served: int) -> None:
        """Counts a request for *model* that *decision* sent to the degraded worker; *served* is 1, or 0 where its queue
        was full. Lets evicted lanes know that they are wanted. Waits for no answer.

        A task that its lanes did not take, although one was ready, is not counted: routing goes on sending requests to
        them.
        """
        plain = derive(decision, lanes_passed=False)
        if not isinstance(plain, ToDegraded):
            return
        self._sent[model] = noted(self._sent.get(model, ()), plain.cause, served, decision.at)
        metrics.fallback_requests.add(model, plain.cause)
        # a lane that the operator keeps out of service would load for nothing
        if plain.cause != "manual" and self._lanes.has_evicted(model):
            await self._demand(model, decision.at)

    async def _demand(self, model: str, now: datetime) -> None:
        asked_at = self._asked_at.get(model)
        if asked_at is None or now - asked_at >= timedelta(seconds=DEMAND_EVERY_S):
            self._asked_at[model] = now
            await self._link.core.publish(demand_subject(model))

    async def run(self, stop: asyncio.Event) -> None:
        """Writes about once a second what there is to write, and what is left when *stop* is set."""
        while not stop.is_set():
            await set_within(TICK_S, stop)
            try:
                await self.write()
            except TransportUnavailable as error:
                self._seldom.log(log.info, "fallbacks_delayed", error=str(error))
            except Exception:
                log.exception("fallbacks_failed")  # the next round may succeed

    async def write(self) -> None:
        """Brings the episodes of every model up to date. Raises TransportUnavailable: the next call writes the rest."""
        for model in self._models:
            while self._link.connection.is_connected and await self._step(model):
                pass

    async def _step(self, model: str) -> bool:
        """Makes one write, if there is one to make, and returns whether there may be another."""
        await self._find_out(model)
        newest, sent = self.known.newest(model), self._sent.get(model, ())
        written, left = self._next(model, newest, sent, datetime.now(UTC))
        if written is None:
            self._sent[model] = left
            return left != sent
        attempt = _Attempt(written, sent, left)
        try:
            await self.known.write(model, written)
        except WrongRevision:
            await self.known.read(model)
            return True
        except TransportUnavailable:
            self._unsure[model] = attempt
            raise
        self._settle(model, attempt)
        _report(newest.episode, written)
        return True

    async def _find_out(self, model: str) -> None:
        """Finds out whether a write that was not answered was stored: a count must not be added twice."""
        attempt = self._unsure.get(model)
        if attempt is None:
            return
        await self.known.read(model)
        del self._unsure[model]
        mine = attempt.written.served_by.get(self._gateway, 0)
        for episode in self.known.episodes(model):
            # nobody else writes what this gateway counted
            if is_same(episode, attempt.written) and episode.served_by.get(self._gateway, 0) == mine:
                self._settle(model, attempt)

    def _settle(self, model: str, attempt: _Attempt) -> None:
        self._sent[model] = still_to_write(self._sent.get(model, ()), attempt.sent, attempt.left)


def _report(before: FallbackEpisode | None, written: FallbackEpisode) -> None:
    if before is None or not is_same(before, written):
        metrics.fallback_activations.add(written.model, written.cause)
        log.warning("fallback_began", model=written.model, cause=written.cause)
    elif before.until is None and written.until is not None:
        lasted_s = (written.until - written.since).total_seconds()
        metrics.fallback_time.add(written.model, written.cause, by=max(0.0, lasted_s))
        log.info("fallback_ended", model=written.model, cause=written.cause, served=written.served)
