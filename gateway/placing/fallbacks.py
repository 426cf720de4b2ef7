"""Fallback episodes: when requests for a model went to the degraded worker, why, and how many (KV `fallbacks`).

Every gateway counts what it sends there, in memory, and adds it by compare-and-set about once a second. The functions
are pure; `Fallbacks` keeps the counts and writes. What a gateway had not yet added when it was killed is not counted.

The key MODEL holds the newest episode. Before the next one takes its place it is written to MODEL.past, whose history
holds 64 of them, one revision each.
"""

import asyncio
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from msgspec import Struct
from msgspec.structs import replace

from contracts.lanes import FallbackCause, FallbackEpisode
from contracts.tasks import RoutingDecision
from contracts.topology import demand_subject
from gateway.boards.lane_board import LaneBoard
from gateway.rules.routing import ToDegraded, derive
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import EPISODES
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry import metrics
from ops.telemetry.seldom import Seldom
from ops.waiting import set_within

TICK_S: Final = 1.0
DEMAND_EVERY_S: Final = 1.0
EPISODES_MAX: Final = 64
# Two gateways see a lane come back a moment apart, by clocks that are up to 0.25 s off the server's.
SAME_MOMENT_S: Final = 0.5
# The next episode is written this long after one ended, so that every gateway has added its last counts to that.
SETTLE_S: Final = 2.5
# While an episode lasts some gateway writes it again so often. Where none has for as long as the other, none was there.
VOUCH_S: Final = 60.0
FORGOTTEN_S: Final = 180.0

log = structlog.get_logger("fallbacks")


class Sent(Struct, frozen=True):
    """Requests that this gateway sent to the degraded worker for one cause, the first one at *since*."""

    cause: FallbackCause
    since: datetime
    served: int


def noted(sent: Sequence[Sent], cause: FallbackCause, served: int, now: datetime) -> tuple[Sent, ...]:
    """*sent* with *served* more requests, which went for *cause* at *now*."""
    if sent and sent[-1].cause == cause:
        return (*sent[:-1], replace(sent[-1], served=sent[-1].served + served))
    return (*sent, Sent(cause, now, served))


def advance(
    episode: FallbackEpisode | None,
    sent: Sequence[Sent],
    *,
    model: str,
    gateway: str,
    cause: FallbackCause | None,
    now: datetime,
    vouched_at: datetime | None = None,
) -> tuple[FallbackEpisode | None, tuple[Sent, ...]]:
    """The next value that *gateway* writes over *episode*, or None when there is nothing to write now, and what is then
    left of *sent*. *cause* is why a request would be sent to the degraded worker now; None if it would not be.
    *vouched_at* is when *episode* was written last, by any gateway.

    1. A request went there for the cause of *episode*, while it lasted or about when it ended: counted on it.
    2. A request went there for another cause, after *episode* began: it ended then.
    3. It came later than that to be counted on the episode before: counted on the one that lasts.
    4. *episode* ended a while ago, or there was none: the next one begins with the first request.
    5. No request is left to count, and routing changed its mind: *episode* ends now.
    6. No gateway has vouched for *episode* for FORGOTTEN_S: it ended with the last of them, whatever routing says now.
    7. It goes on, and nobody has vouched for it for VOUCH_S: it is written again as it is.
    """
    lasts = episode is not None and episode.until is None
    silent_s = 0.0 if vouched_at is None else (now - vouched_at).total_seconds()
    if episode is not None and vouched_at is not None and lasts and silent_s > FORGOTTEN_S:  # 6
        return replace(episode, until=max(vouched_at, episode.since)), tuple(sent)
    if not sent:
        if episode is not None and lasts and episode.cause != cause:  # 5
            return replace(episode, until=max(now, episode.since)), ()
        return (episode if lasts and silent_s > VOUCH_S else None), ()  # 7
    first, rest = sent[0], tuple(sent[1:])
    same_moment = timedelta(seconds=SAME_MOMENT_S)
    if episode is not None:
        counted = _counted(episode, gateway, first.served)
        is_of_it = episode.until is None or first.since <= episode.until + same_moment
        if is_of_it and first.cause == episode.cause:  # 1
            return (counted if first.served else None), rest
        if lasts and first.since > episode.since + same_moment:  # 2
            return replace(episode, until=first.since), tuple(sent)
        if lasts:  # 3
            return (counted if first.served else None), rest
        if episode.until is not None and now < episode.until + timedelta(seconds=SETTLE_S):
            return None, tuple(sent)
    since = first.since if episode is None or episode.until is None else max(first.since, episode.until)
    begun = FallbackEpisode(model=model, cause=first.cause, since=since)
    return _counted(begun, gateway, first.served), rest  # 4


def _counted(episode: FallbackEpisode, gateway: str, served: int) -> FallbackEpisode:
    if not served:
        return episode
    by = episode.served_by | {gateway: episode.served_by.get(gateway, 0) + served}
    return replace(episode, served=episode.served + served, served_by=by)


def is_same(one: FallbackEpisode, other: FallbackEpisode) -> bool:
    """Whether both are the same episode, perhaps at different times."""
    return (one.since, one.cause) == (other.since, other.cause)


def with_newer(episodes: Sequence[FallbackEpisode], newer: FallbackEpisode) -> list[FallbackEpisode]:
    """*episodes*, the oldest first, with *newer* at the end, or in the place of what it was before."""
    before = episodes[:-1] if episodes and is_same(episodes[-1], newer) else episodes
    return [*before, newer][-EPISODES_MAX:]


class _Known(Struct, frozen=True):
    """The newest entry of a key. *episode* is None where it was deleted or cannot be read."""

    episode: FallbackEpisode | None
    revision: int
    at: datetime | None = None


class _Attempt(Struct, frozen=True):
    """A write: *written*, over which *left* would remain of *sent*."""

    written: FallbackEpisode
    sent: tuple[Sent, ...]
    left: tuple[Sent, ...]


class Fallbacks:
    """The episodes of all gateways, and the counts of this one. `start` it before use, then `run` it."""

    def __init__(self, *, lanes: LaneBoard, models: Iterable[str]) -> None:
        self._lanes = lanes
        self._models = tuple(models)
        self._sent: dict[str, tuple[Sent, ...]] = {}
        self._past: dict[str, list[FallbackEpisode]] = {}
        self._known: dict[str, _Known] = {}
        self._unsure: dict[str, _Attempt] = {}
        self._asked_at: dict[str, datetime] = {}
        self._gateway = uuid.uuid4().hex[:8]
        self._seldom = Seldom()
        self._link: NatsLink
        self._bucket: Bucket[FallbackEpisode]

    async def start(self, link: NatsLink) -> None:
        """Watches the bucket; returns once what is there now has been seen. Raises TransportUnavailable."""
        self._link, self._bucket = link, Bucket(link, EPISODES)
        await (await self._bucket.watch(self.on_entry, history=True, on_again=self._again)).wait()

    def _again(self) -> None:
        self._known.clear()
        self._past.clear()

    def on_entry(self, entry: Versioned[FallbackEpisode]) -> None:
        """An episode began, went on or ended, or was put among the past ones; or an operator deleted it."""
        if self._is_news(entry.key, entry.revision):
            self._take_in(entry.key, _Known(entry.value, entry.revision, entry.time))

    def _is_news(self, key: str, revision: int) -> bool:
        return revision > self._newest(key).revision

    def _take_in(self, key: str, known: _Known) -> None:
        self._known[key] = known
        model, _, past = key.partition(".")
        if past and known.episode is not None:
            self._past[model] = with_newer(self._past.get(model, []), known.episode)

    def episodes(self, model: str) -> list[FallbackEpisode]:
        """The episodes of *model*, the oldest first. Only the last one can be one that lasts."""
        past, newest = self._past.get(model, []), self._newest(model).episode
        return past if newest is None else with_newer(past, newest)

    def as_of(self, model: str, now: datetime) -> list[FallbackEpisode]:
        """`episodes` as they are at *now*: the last one is over where routing has changed its mind since it was
        written, or nobody was there to write it."""
        known = self._newest(model)
        if known.episode is None:
            return self.episodes(model)
        cause = self._lanes.cause(model, now)
        settled, _ = advance(
            known.episode, (), model=model, gateway=self._gateway, cause=cause, now=now, vouched_at=known.at
        )
        return self.episodes(model) if settled is None else with_newer(self.episodes(model), settled)

    def _newest(self, key: str) -> _Known:
        return self._known.get(key, _Known(None, 0))

    async def sent(self, model: str, decision: RoutingDecision, *, served: int) -> None:
        """*decision* sent a request for *model* to the degraded worker, whose queue took *served* of it (1, or 0 if it
        was full). Evicted lanes are told that they are wanted. Waits for nothing.

        A task that its lanes passed on while one was ready is not counted: routing goes on to send requests to them.
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
                self._seldom.tell(log.info, "fallbacks_delayed", error=str(error))
            except Exception:
                log.exception("fallbacks_failed")  # the next round may succeed

    async def write(self) -> None:
        """Brings the episodes of every model up to date. Raises TransportUnavailable before anything was written."""
        for model in self._models:
            while self._link.connection.is_connected and await self._step(model):
                pass

    async def _step(self, model: str) -> bool:
        """One write, if there is one to make."""
        await self._find_out(model)
        known = self._newest(model)
        now = datetime.now(UTC)
        sent = self._sent.get(model, ())
        cause = self._lanes.cause(model, now)
        written, left = advance(
            known.episode, sent, model=model, gateway=self._gateway, cause=cause, now=now, vouched_at=known.at
        )
        if written is None:
            self._sent[model] = left
            return left != sent
        attempt = _Attempt(written, sent, left)
        try:
            if known.episode is not None and not is_same(known.episode, written):
                await self._keep(f"{model}.past", known.episode)
            await self._write(model, written, known.revision)
        except WrongRevision:
            await self._look(model)
            await self._look(f"{model}.past")
            return True
        except TransportUnavailable:
            self._unsure[model] = attempt
            raise
        self._settle(model, attempt)
        _tell(known.episode, written)
        return True

    async def _keep(self, key: str, ended: FallbackEpisode) -> None:
        last = self._newest(key)
        if last.episode is None or not is_same(last.episode, ended):
            await self._write(key, ended, last.revision)

    async def _write(self, key: str, episode: FallbackEpisode, revision: int) -> None:
        new_revision = await self._bucket.update(key, episode, revision=revision)
        if self._is_news(key, new_revision):  # or the watch was faster
            self._take_in(key, _Known(episode, new_revision, datetime.now(UTC)))

    async def _find_out(self, model: str) -> None:
        """Whether a write that was not answered was stored: a count must not be added twice."""
        attempt = self._unsure.get(model)
        if attempt is None:
            return
        await self._look(model)
        await self._look(f"{model}.past")
        del self._unsure[model]
        mine = attempt.written.served_by.get(self._gateway, 0)
        for episode in self.episodes(model):
            # nobody else writes what this gateway counted
            if is_same(episode, attempt.written) and episode.served_by.get(self._gateway, 0) == mine:
                self._settle(model, attempt)

    async def _look(self, key: str) -> None:
        """What the server has counts, also where a higher revision is known: that one may be lost (ADR 0030)."""
        entry = await self._bucket.get(key)
        known = self._known.get(key)
        if entry is None or (known is not None and entry.revision < known.revision):
            self._known.pop(key, None)
        if entry is not None:
            self.on_entry(entry)

    def _settle(self, model: str, attempt: _Attempt) -> None:
        self._sent[model] = _minus(self._sent.get(model, ()), attempt.sent, attempt.left)


def _minus(now: tuple[Sent, ...], before: tuple[Sent, ...], left: tuple[Sent, ...]) -> tuple[Sent, ...]:
    """The counts of *now* still to be written; *now* grew out of *before*, of which *left* is not written yet."""
    written = before[: len(before) - len(left)]
    if not written:
        return now
    more = now[0].served - written[0].served
    return (replace(now[0], served=more), *now[1:]) if more else now[1:]


def _tell(before: FallbackEpisode | None, written: FallbackEpisode) -> None:
    if before is None or not is_same(before, written):
        metrics.fallback_activations.add(written.model, written.cause)
        log.warning("fallback_began", model=written.model, cause=written.cause)
    elif before.until is None and written.until is not None:
        lasted_s = (written.until - written.since).total_seconds()
        metrics.fallback_time.add(written.model, written.cause, by=max(0.0, lasted_s))
        log.info("fallback_ended", model=written.model, cause=written.cause, served=written.served)
