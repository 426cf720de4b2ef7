"""A lane: one model, kept warm on a card of its own, serving the stream of its model (FR-011, FR-019)."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Final

import structlog

from contracts.lanes import LaneState
from contracts.settings import ModelEntry
from contracts.tasks import MemoryReading
from contracts.topology import demand_subject, lane_stream
from lane_worker.forking.host import PING_S, HostLost, LoadFailed, SlotTaken
from lane_worker.forking.host_messages import Finished
from lane_worker.residence.quarantine import Quarantined
from lane_worker.residence.states import Resident
from lane_worker.runtime.assembly import Setup, assemble
from lane_worker.runtime.cold_start import ColdStartLog
from lane_worker.runtime.heartbeat import Heartbeat
from lane_worker.runtime.lanes_beside import lane_reports
from lane_worker.runtime.leaving import drain
from lane_worker.runtime.streak import DISTRUST, Advice, Renew, Rest, Serve, advice, renewed, rested, words
from lane_worker.runtime.warm_up import TooLargeForCard, warm_up_failure, warm_up_request, warm_up_size
from lane_worker.runtime.warmth import (
    Evict,
    Others,
    Recycle,
    Stay,
    Step,
    Wear,
    next_step,
    others_of,
    residue_bytes,
    worn_out,
)
from ops.ending import end
from ops.lanes.plan import crash_loops, failed_again
from ops.nats.errors import TransportUnavailable
from ops.telemetry import metrics
from ops.telemetry.metrics import ENDED_BY_WORKERS, begin_tasks, memory_cleanups
from ops.telemetry.tracing import span
from ops.waiting import set_within, unless

RESTART_FIRST_S: Final = 0.5
RESTART_MAX_S: Final = 30.0
# What memory of the card is short of in a warm-up is seldom there a minute later, and each try loads everything again.
TOO_LARGE_RETRY_S: Final = 600.0
TOLD_S: Final = 2.0
# A host that missed this many seconds of pings is given no task; one that misses `health_timeout_s` is killed.
SILENT_S: Final = 3 * PING_S

log = structlog.get_logger("lane")


class LaneWorker:
    """One lane process: a supervisor without torch, and a pipeline host child that holds the model."""

    def __init__(self, setup: Setup, *, model: ModelEntry, started_at: datetime) -> None:
        """*started_at* is when the process began, from which its cold start is counted."""
        self._link = setup.link
        self._model = model
        self._windows = setup.catalog.windows
        self._warmth = setup.catalog.warmth
        self._name, self._slot = setup.name, setup.slot
        parts = assemble(
            setup,
            {model.name: model},
            role="lane",
            stream=lane_stream(model.name),
            on_wait=self._on_wait,
            on_busy=self._on_busy,
        )
        self._scratch, self._host, self._display = parts.scratch, parts.host, parts.display
        self._residence, self._runner, self._loop = parts.residence, parts.runner, parts.loop
        self._heartbeat = Heartbeat(
            setup.link,
            model=model.name,
            worker=setup.name,
            slot=setup.slot,
            interval_s=self._windows.heartbeat_s,
            health_age_s=lambda: self._host.health_age_s if self._host.pid is not None else 0.0,
            started_at=started_at,
            in_hand=lambda: self._loop.in_hand,
        )
        self._starts = ColdStartLog(setup.link, model=model.name, worker=setup.name, started_at=started_at)
        self._draining = False
        self._has_trouble = False
        self._failures: tuple[float, ...] = ()  # when loads failed, since the last one that did not
        self._demand = asyncio.Event()
        self._renew_because: str | None = None
        self._loaded: Resident | None = None  # the load that is counted from
        self._clean: MemoryReading | None = None  # what the host held after the generation that warmed it up
        self._tasks = 0
        self._idle_since_s = 0.0

    async def run(self, stop: asyncio.Event, *, for_quota: asyncio.Event | None = None) -> None:
        """Serves until *stop*; then finishes the task in hand within `windows.drains_s`, releases and leaves.

        A load that is under way then is given up. Where *for_quota* is set by then, it says from its next word on that
        it leaves for a quota.
        Raises SlotTaken when another process holds the card, HostLost when its host does not even start,
        TransportUnavailable when the server is away at the start.
        """
        self._scratch.ensure()
        begin_tasks([self._model.name], "lane", ENDED_BY_WORKERS)
        memory_cleanups.begin(self._model.name, "done")
        for reason in DISTRUST:
            metrics.hosts_distrusted.begin(self._slot, reason)
        await self._display.start()
        beating = asyncio.create_task(self._heartbeat.run())
        displaying = asyncio.create_task(self._display.run())
        recording = asyncio.create_task(self._starts.run())
        watching = asyncio.create_task(self._watch_host())
        serving = asyncio.create_task(self._serve(stop))
        stopped = asyncio.create_task(stop.wait())
        try:
            keeping = (beating, displaying, recording, watching)
            await asyncio.wait({serving, stopped, *keeping}, return_when=asyncio.FIRST_COMPLETED)
            for keeper in keeping:
                if keeper.done():
                    await keeper  # a lane that cannot be heard of must not look warm: fail, and be started again
            if stop.is_set():
                self._drains(for_quota is not None and for_quota.is_set())
            if self._loop.in_hand is not None or self._is_loaded():
                await drain(
                    serving,
                    drain_s=self._windows.drains_s([self._model]),
                    leave=self._runner.leave,
                    kill=self._host.kill,
                    waits_for_server_s=self._loop.waits_for_server_s,
                    unanswered_s=self._windows.lease_s,
                )
            else:
                await end(serving)
            if not serving.cancelled():
                await serving
        except SlotTaken as error:
            self._starts.failed(str(error))
            raise
        finally:
            await end(serving, stopped, beating, watching)
            await self._loop.close()
            await self._residence.close()
            await self._display.leave()
            await self._starts.leave()
            await end(displaying, recording)
            await self._heartbeat.leave()
            self._scratch.remove()
            log.info("lane_left")

    async def _serve(self, stop: asyncio.Event) -> None:
        if self._warmth.evict_idle_s:
            await self._link.core.subscribe(demand_subject(self._model.name), self._on_demand)
        wait_s = RESTART_FIRST_S
        while not stop.is_set():
            if self._residence.quarantined or self._display.quarantine is not None:
                self._starts.failed("the slot is quarantined")
                self._show(LaneState.UNHEALTHY, "the slot is quarantined")
                await self._until_lifted(stop)
                continue
            try:
                with span("cold_start", {"model": self._model.name, "warmlane.worker": self._name}):
                    await self._warm_up()
                wait_s, self._failures = RESTART_FIRST_S, ()
                await self._stay_warm(stop)
            except Quarantined:
                continue
            except (HostLost, LoadFailed) as error:
                pause_s = TOO_LARGE_RETRY_S if isinstance(error, TooLargeForCard) else wait_s
                log.error("not_warm", error=str(error), again_in_s=pause_s)
                self._starts.failed(str(error))
                self._failures = failed_again(self._failures, now_s=time.monotonic())
                self._show_failure(str(error), again_in_s=pause_s)
                await set_within(pause_s, stop)
                wait_s = min(RESTART_MAX_S, wait_s * 2)

    async def _until_lifted(self, stop: asyncio.Event) -> None:
        if await unless(stop.wait(), self._display.usable()):
            self._residence.lift()

    async def _warm_up(self) -> None:
        """Starts the host, loads, and runs the generation of `warm_up_request`.

        Raises SlotTaken, HostLost, LoadFailed, Quarantined, WarmUpFailed.
        """
        if self._host.pid is None:
            self._display.take()
            ready = await self._residence.open()
            self._scratch.remove_what_others_left()
            await self._runner.account_for(ready)
        renew_because, self._renew_because = self._renew_because, None
        if not crash_loops(self._failures):  # one that does is reported until a load succeeds
            self._show(LaneState.LOADING, renew_because or "")
        resident = await self._residence.ready(self._model.name, renew_because=renew_because or "")
        if not crash_loops(self._failures):
            warming_up = f"warms up with {warm_up_size(self._model)}"
            self._show(LaneState.LOADING, "; ".join(filter(None, [renew_because, warming_up])))
        self._scratch.ensure()
        outcome = await self._host.generate(warm_up_request(self._model, self._scratch.folder), lambda _: None)
        if not isinstance(outcome, Finished):
            await self._host.kill()
            raise warm_up_failure(self._model, outcome)
        size, load_s = str(warm_up_size(self._model)), round(resident.receipt.load_s, 3)
        log.info("warm", load_s=load_s, rss_bytes=resident.memory.rss_bytes, warmed_up_with=size)
        if resident is not self._loaded:  # else it was not loaded: what tasks left since then still counts
            self._loaded, self._clean, self._tasks = resident, outcome.memory, 0
        self._idle_since_s = time.monotonic()
        self._show(LaneState.WARM)
        if not self._draining:
            self._starts.warm()

    async def _stay_warm(self, stop: asyncio.Event) -> None:
        """Serves until the pipeline is gone, or is to be loaded anew. Raises Quarantined, HostLost."""
        while self._is_loaded() and not stop.is_set():
            if self._host.health_age_s > SILENT_S:
                # A host that hangs runs nothing: what it would claim, another worker can take.
                await set_within(PING_S, stop)
                continue
            served = await self._loop.serve_one(stop)
            self._show_trouble()
            if stop.is_set() or await self._distrusts(stop) or not self._is_loaded():
                return
            match await self._next_step(queue_is_empty=not served):
                case Recycle(reason):
                    if await self._may_recycle(queue_is_empty=not served):
                        self._renew_because = f"recycled: {reason}"
                        return
                case Evict():
                    if await self._evict(stop):
                        return
                case Stay():
                    pass

    def _show_trouble(self) -> None:
        """A lane to which no task can come is not warm, or it would be sent every request."""
        had_trouble, self._has_trouble = self._has_trouble, self._loop.trouble is not None
        if self._loop.trouble is not None and not had_trouble:
            self._show(LaneState.UNHEALTHY, self._loop.trouble)
        elif had_trouble and not self._has_trouble:
            self._show(*self._when_idle())

    def _advice(self) -> Advice:
        return advice(self._runner.streak, renew_after=self._warmth.renew_after_failures)

    async def _distrusts(self, stop: asyncio.Event) -> bool:
        """Whether the lane has to warm up again before it takes another task (ADR 0026), now that its rest is over."""
        streak = self._runner.streak
        match self._advice():
            case Renew():
                log.error("renewed_after_failures", failures=streak.failures)
                metrics.hosts_distrusted.add(self._slot, "in_a_row")
                if self._is_loaded():
                    self._renew_because = words(streak)
                self._runner.streak = renewed(streak)
            case Rest(pause_s):
                log.error("rests_after_failures", failures=streak.failures, pause_s=pause_s)
                metrics.hosts_distrusted.add(self._slot, "rest")
                self._show(*self._when_idle())
                await set_within(pause_s, stop)
                self._runner.streak = rested(streak)
            case Serve():
                return False
        return True

    def _when_idle(self) -> tuple[LaneState, str]:
        """What the lane says of itself when it has nothing in hand."""
        match self._advice():
            case Rest(pause_s):
                return LaneState.UNHEALTHY, f"{words(self._runner.streak)}; it tries itself again in {pause_s:g} s"
            case Renew():
                return LaneState.LOADING, words(self._runner.streak)
        # without its model the lane is not warm: it is about to load again
        return (LaneState.WARM if self._is_loaded() else LaneState.LOADING), ""

    async def _next_step(self, *, queue_is_empty: bool) -> Step:
        resident = self._residence.resident
        if resident is not None and resident is not self._loaded:  # by a task that needed it anew
            # `_clean` stays: this host had no warm-up, and by what a load holds, the first large task would be a leak
            self._loaded, self._tasks = resident, 0
        wear = Wear(self._tasks, residue_bytes(self._clean, self._runner.memory) if self._tasks else 0)
        others = Others.NONE
        if worn_out(self._warmth, wear) is not None:
            try:
                others = await self._others()
            except TransportUnavailable:
                return Stay()
        idle_s = time.monotonic() - self._idle_since_s
        return next_step(self._warmth, wear, idle_s=idle_s, queue_is_empty=queue_is_empty, others=others)

    async def _others(self) -> Others:
        """The other lanes of the model as the server has them now. Raises TransportUnavailable."""
        return others_of(
            await lane_reports(self._link, self._model.name),
            self._name,
            health_timeout_s=self._windows.health_timeout_s,
            now=datetime.now(UTC),
        )

    async def _may_recycle(self, *, queue_is_empty: bool) -> bool:
        """Takes the lane out of service, then decides again; it is back in service where that says otherwise.

        Two lanes that are worn out together both say so before either looks, so never do both leave.
        """
        if not await self._announce(LaneState.LOADING, "about to be recycled"):
            return False
        if isinstance(await self._next_step(queue_is_empty=queue_is_empty), Recycle):
            return True
        self._show(LaneState.WARM)
        return False

    async def _evict(self, stop: asyncio.Event) -> bool:
        """Unloads, and waits until a request asks for the model; whether it is to be loaded again.

        Raises Quarantined, HostLost.
        """
        self._demand.clear()
        if not await self._announce(LaneState.EVICTED, "no task for a while"):
            return False
        # what was sent here before that was known still finds the pipeline
        if await self._loop.serve_one(stop) or self._demand.is_set() or stop.is_set():
            self._show(LaneState.WARM)
            return False
        await self._residence.evict()
        await unless(stop.wait(), self._demand.wait())
        if not stop.is_set():
            self._starts.demanded()
        return True

    async def _announce(self, state: LaneState, detail: str) -> bool:
        """Whether the server knows of *state*; it is WARM again where that is unknown."""
        self._show(state, detail)
        try:
            async with asyncio.timeout(TOLD_S):
                await self._heartbeat.told()
        except TimeoutError:
            self._show(LaneState.WARM)
            return False
        return not self._draining

    def _on_demand(self, _: str, __: bytes) -> None:
        self._demand.set()

    async def _watch_host(self) -> None:
        """Kills a host with a model that has not answered for `health_timeout_s`; `_serve` starts another one."""
        limit_s = self._windows.health_timeout_s
        while True:
            silent_s = self._silent_s()
            if silent_s < limit_s:
                await asyncio.sleep(min(limit_s - silent_s, self._windows.heartbeat_s))
                continue
            # It may be this process that was stopped: then the host's answers are still to be read.
            await asyncio.sleep(2 * PING_S)
            silent_s = self._silent_s()
            if silent_s >= limit_s:
                log.error("host_hangs", silent_s=round(silent_s, 1))
                self._show(LaneState.UNHEALTHY, f"the pipeline host did not answer for {silent_s:.0f} s")
                try:
                    await self._host.kill()
                except HostLost as error:
                    log.error("host_not_killed", error=str(error))

    def _silent_s(self) -> float:
        return self._host.health_age_s if self._is_loaded() else 0.0

    def _is_loaded(self) -> bool:
        return self._residence.resident is not None

    def _on_wait(self, detail: str) -> None:
        if not crash_loops(self._failures):
            self._show(LaneState.STARTING, detail)

    def _on_busy(self, busy: bool) -> None:
        if not busy:
            self._tasks += 1
            self._idle_since_s = time.monotonic()
        if busy:
            self._show(LaneState.BUSY)
        else:
            self._show(*self._when_idle())

    def _show_failure(self, error: str, *, again_in_s: float) -> None:
        if crash_loops(self._failures):
            again = f"the last: {error}; tried again after {again_in_s:g} s"
            self._show(LaneState.CRASH_LOOPING, f"{len(self._failures)} times in a row it could not load; {again}")
        else:
            self._show(LaneState.UNHEALTHY, error)

    def _drains(self, for_quota: bool) -> None:
        if for_quota:
            self._heartbeat.set(LaneState.DRAINING, "the quota does not allow it any more", leaving_for="quota")
        else:
            self._heartbeat.set(LaneState.DRAINING)
        self._draining = True

    def _show(self, state: LaneState, detail: str = "") -> None:
        """The lane is in *state* now. One that leaves is `draining`, whatever else it does meanwhile."""
        if not self._draining:
            self._heartbeat.set(state, detail)
