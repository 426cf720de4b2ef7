"""Keeps the wanted lanes, and reports which lanes cannot be had, and why (FR-011, design §6)."""

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from contracts.lanes import ColdStart, InHand, LaneHeartbeat, LaneState
from contracts.settings import Windows
from contracts.topology import lane_key
from ops.ending import end
from ops.lanes.plan import (
    Death,
    Deny,
    LaneDenial,
    ReportedState,
    Seen,
    Silence,
    Start,
    Stop,
    Want,
    after_death,
    plan,
    report_of,
)
from ops.lanes.providers import GrantedLane, LaneDenied, LaneProvider
from ops.lanes.quota import Quota
from ops.lanes.recovery import LostStarts, give_back
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import HEARTBEATS
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry.metrics import lane_deaths
from ops.telemetry.seldom import Seldom
from ops.waiting import set_within

# The supervisor asks for a denied lane again when a slot becomes free, when the quota changes, or else this often.
DENIAL_RETRY_S: Final = 5.0
# The pause between tries to report while the server is away.
RETRY_S: Final = 0.2
# When its drain is over, a lane stops its task, hands the task back and lets go of its card. If it has not ended after
# this further time, it is killed.
DRAIN_EXTRA_S: Final = 40.0
WAS_WARM: Final = frozenset({LaneState.WARM, LaneState.BUSY})

log = structlog.get_logger("supervisor")


class Supervised:
    """One wanted lane, as its supervisor knows it."""

    def __init__(self, want: Want) -> None:
        self.want = want
        self.key = lane_key(want.model, want.name)
        self.granted: GrantedLane | None = None
        self.stopping = False
        self.denial: LaneDenial | None = None
        self.denied: Deny | None = None
        self.silence = Silence()
        self.was_warm = False
        """Whether the current process has been warm."""
        self.orphan: tuple[InHand, Death] | None = None
        """What the process that ended last had in hand, until that is given back."""
        self._heard: LaneHeartbeat | None = None
        self._said: ReportedState | None = None
        self._since = datetime.now(UTC)

    def seen(self) -> Seen:
        """The lane as `plan` takes it."""
        if self.granted is None:
            return Seen(denial=self.denial)
        return Seen("stopping" if self.stopping else "granted", warm=self.was_warm)

    def hear(self, heartbeat: LaneHeartbeat | None) -> bool:
        """Takes in the entry that is at the lane's key now. Returns True when a process that is gone wrote it."""
        self._heard = heartbeat
        if self.speaks_for_itself:
            self.was_warm |= heartbeat is not None and heartbeat.state in WAS_WARM
            return False
        self._find_orphan()
        return heartbeat is not None and heartbeat.pid != os.getpid()

    def died(self, death: Death, *, now_s: float) -> None:
        """The lane's process ended by itself."""
        self.silence = after_death(self.silence, death, was_warm=self.was_warm, now_s=now_s)
        self.was_warm = False
        self._find_orphan()

    def _find_orphan(self) -> None:
        # only for a process that was reaped: one that is no child of ours may be alive, and drain
        last = self.silence.last
        if last is not None and self._heard is not None and self._heard.pid == last.pid and self._heard.in_hand:
            self.orphan = self._heard.in_hand, last

    @property
    def speaks_for_itself(self) -> bool:
        """Whether the lane's process runs, and wrote the entry at the lane's key."""
        spoken = None if self._heard is None else self._heard.pid
        return self.granted is not None and self.granted.pid is not None and self.granted.pid == spoken

    def report(self, now_s: float) -> ReportedState | None:
        """What the supervisor has to report of the lane; None when its own process reports, or is about to leave."""
        if self.granted is None:
            return None if self.denied is None else report_of(self.denied, now_s=now_s)
        return None if self.stopping or self.speaks_for_itself else report_of(self.silence, now_s=now_s)

    def heartbeat(self, report: ReportedState) -> LaneHeartbeat:
        """*report* as it is stored. `started_at` is the time since which the lane has been reported in that state."""
        if self._said is None or self._said.state is not report.state:
            self._since = datetime.now(UTC)
            log.info("lane_reported", lane=self.want.name, state=report.state.value, detail=report.detail)
        self._said = report
        return LaneHeartbeat(
            model=self.want.model,
            worker=self.want.name,
            state=report.state,
            health_age_s=0.0,
            slot="" if self.granted is None else self.granted.slot,
            pid=os.getpid(),
            started_at=self._since,
            detail=report.detail,
        )

    def leaves_it_to_its_process(self) -> None:
        """The supervisor reports nothing of the lane now: its next report is news again."""
        self._said = None


class Supervisor:
    """Starts, stops and denies lanes as `plan` says, and reports for lanes that do not report themselves."""

    def __init__(
        self,
        link: NatsLink,
        provider: LaneProvider,
        wanted: Sequence[Want],
        quota: Quota,
        windows: Windows,
        *,
        drain_s: float,
    ) -> None:
        """*drain_s* is the longest drain of the wanted lanes."""
        self._link = link
        self._provider = provider
        self._wanted = wanted
        self._quota = quota
        self._windows = windows
        self._leaves_within_s = drain_s + DRAIN_EXTRA_S
        self._lanes = {want.name: Supervised(want) for want in wanted}
        self._by_key = {lane.key: lane for lane in self._lanes.values()}
        self._heartbeats = Bucket(link, HEARTBEATS, reports=False)
        self._lost_starts = LostStarts(link)
        self._news = asyncio.Event()
        self._seldom = Seldom()

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Keeps the lanes until *stop*; then drains them all, or kills them on *hurry*, and removes its own reports.

        Raises TransportUnavailable when the server is away at the start.
        """
        self._link.connection.on_reconnect(self._news.set)
        await self._lost_starts.start()
        await (await self._heartbeats.watch(self._on_entry)).wait()
        async with asyncio.TaskGroup() as group:
            polling = group.create_task(self._quota.follow(self._ask_again))
            stopped = group.create_task(stop.wait())
            stopped.add_done_callback(lambda _: self._news.set())
            while not stop.is_set():
                self._news.clear()
                await self._act(group)
                wait_s = self._windows.heartbeat_s if await self._report() else RETRY_S
                await set_within(wait_s, self._news)
            await end(polling)
            await self._leave(hurry)

    async def _act(self, group: asyncio.TaskGroup) -> None:
        seen = {name: lane.seen() for name, lane in self._lanes.items()}
        for name, verdict in plan(self._wanted, seen, self._quota.max_lanes, now_s=time.monotonic()).items():
            lane = self._lanes[name]
            lane.denied = verdict if isinstance(verdict, Deny) else None
            if isinstance(verdict, Start):
                await self._start(lane)
            elif isinstance(verdict, Stop):
                log.info("lane_surplus", lane=name)
                lane.stopping = True
                group.create_task(self._stop(lane))

    async def _start(self, lane: Supervised) -> None:
        try:
            lane.granted = await self._provider.start(lane.want, partial(self._on_death, lane))
        except LaneDenied as denied:
            lane.denial = LaneDenial(denied.kind, str(denied), time.monotonic() + DENIAL_RETRY_S)
            lane.denied = Deny(denied.kind, str(denied))
            return
        lane.denial, lane.silence, lane.was_warm = None, Silence(), False
        log.info("lane_granted", lane=lane.want.name, slot=lane.granted.slot)

    async def _stop(self, lane: Supervised) -> None:
        assert lane.granted is not None
        await lane.granted.stop(within_s=self._leaves_within_s, leaving_for="quota")
        lane.granted, lane.stopping = None, False
        self._ask_again()

    def _ask_again(self) -> None:
        for lane in self._lanes.values():
            lane.denial = None
        self._news.set()

    def _on_death(self, lane: Supervised, death: Death) -> None:
        log.warning("lane_ended", lane=lane.want.name, how=death.how)
        lane_deaths.add(lane.want.model)
        if not lane.was_warm:
            self._lost_starts.lost(
                ColdStart(
                    model=lane.want.model,
                    worker=lane.want.name,
                    started_at=death.began_at,
                    ended_at=datetime.now(UTC),
                    seconds=None,
                    detail=death.how,
                )
            )
        lane.died(death, now_s=time.monotonic())
        self._news.set()

    def _on_entry(self, entry: Versioned[LaneHeartbeat]) -> None:
        lane = self._by_key.get(entry.key)
        if lane is not None and lane.hear(entry.value):
            self._news.set()

    async def _report(self) -> bool:
        """Stores what there is to report, and does what dead lanes left undone. Returns false when the caller has to
        try again."""
        try:
            for lane in self._lanes.values():
                if lane.report(time.monotonic()) is None:
                    lane.leaves_it_to_its_process()
                else:
                    await self._say(lane)
            return await self._clear_up()
        except TransportUnavailable as error:
            self._seldom.log(log.warning, "lane_not_reported", error=str(error))
            return False

    async def _clear_up(self) -> bool:
        for lane in self._lanes.values():
            if lane.orphan is not None:
                in_hand, death = lane.orphan
                await give_back(self._link, in_hand, how=death.how)
                lane.orphan = None
        return await self._lost_starts.store()

    async def _say(self, lane: Supervised) -> None:
        """Stores the report, unless the lane's own process has written: its newer entry is never overwritten."""
        while True:
            entry = await self._heartbeats.get(lane.key)
            lane.hear(None if entry is None else entry.value)
            report = lane.report(time.monotonic())
            if report is None:
                return
            revision = 0 if entry is None else entry.revision
            with contextlib.suppress(WrongRevision):
                await self._heartbeats.update(lane.key, lane.heartbeat(report), revision=revision)
                return

    async def _leave(self, hurry: asyncio.Event) -> None:
        granted = [lane.granted for lane in self._lanes.values() if lane.granted is not None]

        async def kill() -> None:
            await hurry.wait()
            for lane in granted:
                lane.kill()

        killing = asyncio.create_task(kill())
        await asyncio.gather(*(lane.stop(within_s=self._leaves_within_s) for lane in granted))
        await end(killing)
        with contextlib.suppress(TransportUnavailable):  # the reports expire by themselves
            await self._clear_up()
            for key in self._by_key:
                await self._take_back(key)

    async def _take_back(self, key: str) -> None:
        entry = await self._heartbeats.get(key)
        heartbeat = None if entry is None else entry.value
        if entry is None or heartbeat is None:
            return
        # a lane that left for the quota left its last entry for us to replace
        if heartbeat.pid == os.getpid() or heartbeat.leaving_for is not None:
            with contextlib.suppress(WrongRevision):
                await self._heartbeats.delete(key, revision=entry.revision)
