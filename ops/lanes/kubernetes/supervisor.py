"""Keeps the wanted lanes as replicas of a cluster, and reports what the cluster says of lanes that do not report
themselves (FR-011, FR-021 a; ADR 0060)."""

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from contracts.lanes import LaneHeartbeat
from contracts.settings import Windows
from contracts.topology import lane_key
from ops.ending import end
from ops.lanes.kubernetes.cluster import Cluster
from ops.lanes.kubernetes.cost_keeper import CostKeeper
from ops.lanes.kubernetes.reading import LaneWord, may_replace, scales, unseen, words
from ops.lanes.quota import Quota
from ops.lanes.recovery import give_back
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import HEARTBEATS
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry.metrics import lane_deaths
from ops.telemetry.seldom import Seldom
from ops.waiting import set_within

RETRY_S: Final = 0.2
# Kubernetes gives the end of a container in whole seconds.
END_WITHIN: Final = timedelta(seconds=1)

log = structlog.get_logger("supervisor")


def is_ours(heartbeat: LaneHeartbeat) -> bool:
    """Whether a supervisor wrote *heartbeat*: a lane that reports itself has a slot."""
    return heartbeat.slot == ""


class _Said:
    """The last report of a lane: *word* since *since*, stored at *at_s* (monotonic)."""

    def __init__(self, word: LaneWord, since: datetime) -> None:
        self.word, self.since, self.at_s = word, since, float("-inf")


class ClusterSupervisor:
    """Scales as `scales` says and reports as `words` says. While it cannot see the cluster it never scales, and goes on
    reporting what it knew last, with the reason why that may be out of date."""

    def __init__(
        self,
        link: NatsLink,
        cluster: Cluster,
        wanted: Mapping[str, int] | None,
        quota: Quota,
        windows: Windows,
        *,
        news: asyncio.Event,
        costs: CostKeeper | None = None,
    ) -> None:
        """*cluster* sets *news* when it changes. *wanted* has the number of lanes of each model; None: as the
        Deployments have them. *costs* keeps the cost of deleting each pod; None: that cost is not kept."""
        self._link, self._cluster, self._wanted = link, cluster, wanted
        self._quota, self._windows, self._news, self._costs = quota, windows, news, costs
        self._heartbeats = Bucket(link, HEARTBEATS, reports=False)
        self._heard: dict[str, Versioned[LaneHeartbeat]] = {}
        self._said: dict[str, _Said] = {}
        self._restarts: dict[str, int] = {}
        self._seldom = Seldom()

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until *stop*; then removes its own reports. The lanes stay: the next supervisor takes them over.

        Raises TransportUnavailable when nats-server is away at the start.
        """
        self._link.connection.on_reconnect(self._news.set)
        await (await self._heartbeats.watch(self._on_entry)).wait()
        async with asyncio.TaskGroup() as group:
            working = [group.create_task(self._cluster.follow()), group.create_task(self._quota.follow(self._news.set))]
            if self._costs is not None:
                working.append(group.create_task(self._costs.follow()))
            stopped = group.create_task(stop.wait())
            stopped.add_done_callback(lambda _: self._news.set())
            while not stop.is_set():
                self._news.clear()
                wait_s = self._windows.heartbeat_s if await self._act() else RETRY_S
                await set_within(wait_s, self._news)
            await end(*working)
        with contextlib.suppress(TransportUnavailable):  # the reports expire by themselves
            for key in list(self._said):
                await self._take_back(key)

    async def _act(self) -> bool:
        """Scales and reports. Returns false when the caller has to try again soon."""
        if not self._cluster.was_seen:
            return True
        deployments = list(self._cluster.deployments.objects.values())
        pods = list(self._cluster.pods.objects.values())
        self._count_deaths()
        if not self._cluster.blind:
            limits = self._quota.max_lanes
            for name, replicas in scales(deployments, wanted=self._wanted, quota=limits).items():
                await self._cluster.scale(name, replicas)
        now = datetime.now(UTC)
        found = words(deployments, pods, wanted=self._wanted, quota=self._quota.max_lanes, now=now)
        if self._cluster.blind:
            found = [unseen(each, why=self._cluster.blind) for each in found]
        return await self._report({lane_key(each.model, each.name): each for each in found})

    def _count_deaths(self) -> None:
        pods = self._cluster.pods.objects
        for name, pod in pods.items():
            ended = pod.restarts - self._restarts.get(name, pod.restarts)
            if ended > 0:
                for _ in range(ended):
                    lane_deaths.add(pod.model)
                log.warning("lane_ended", lane=name, times=ended)
        self._restarts = {name: pod.restarts for name, pod in pods.items()}

    async def _report(self, found: Mapping[str, LaneWord]) -> bool:
        try:
            for key, word in found.items():
                await self._say(key, word)
            left = {key for key, entry in self._heard.items() if entry.value is not None and is_ours(entry.value)}
            for key in (left | self._said.keys()) - found.keys():
                await self._take_back(key)
        except TransportUnavailable as error:
            self._seldom.log(log.warning, "lane_not_reported", error=str(error))
            return False
        return True

    async def _say(self, key: str, word: LaneWord) -> None:
        """Stores *word*, unless the lane's own process reports: its newer entry is never overwritten."""
        said = self._said.get(key)
        if said is None or said.word.state is not word.state:
            said = self._said[key] = _Said(word, datetime.now(UTC))
        entry = self._heard.get(key)
        while True:
            heard = None if entry is None else entry.value
            if entry is not None and heard is not None and not is_ours(heard):
                if not may_replace(word, began_at=heard.started_at - END_WITHIN, is_silent=self._is_silent(entry)):
                    del self._said[key]
                    return
                if heard.in_hand is not None and word.ended_at is not None:
                    await give_back(self._link, heard.in_hand, how=word.detail)
            elif heard is not None and said.word == word and self._is_fresh(said):
                return
            if said.at_s < 0 or said.word != word:
                log.info("lane_reported", lane=word.name, state=word.state.value, detail=word.detail)
            heartbeat = LaneHeartbeat(
                model=word.model,
                worker=word.name,
                state=word.state,
                health_age_s=0.0,
                slot="",
                pid=os.getpid(),
                started_at=said.since,
                detail=word.detail,
            )
            try:
                await self._heartbeats.update(key, heartbeat, revision=0 if entry is None else entry.revision)
            except WrongRevision:
                entry = await self._heartbeats.get(key)
                continue
            said.word, said.at_s = word, time.monotonic()
            return

    def _is_fresh(self, said: _Said) -> bool:
        return time.monotonic() - said.at_s < self._windows.heartbeat_s

    def _is_silent(self, entry: Versioned[LaneHeartbeat]) -> bool:
        return (datetime.now(UTC) - entry.time).total_seconds() > self._windows.health_timeout_s

    async def _take_back(self, key: str) -> None:
        self._said.pop(key, None)
        entry = await self._heartbeats.get(key)
        if entry is not None and entry.value is not None and is_ours(entry.value):
            with contextlib.suppress(WrongRevision):
                await self._heartbeats.delete(key, revision=entry.revision)

    def _on_entry(self, entry: Versioned[LaneHeartbeat]) -> None:
        before = self._heard.get(entry.key)
        self._heard[entry.key] = entry
        if self._costs is not None and (last := entry.value or (before and before.value)):
            self._costs.hear(last.worker, None if entry.value is None else last.state)
        if entry.value is None:
            del self._heard[entry.key]
            self._news.set()
        elif before is None or is_ours(entry.value) != (before.value is not None and is_ours(before.value)):
            self._news.set()
