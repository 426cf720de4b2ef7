"""A lane: one model, kept warm on a card of its own, serving the stream of its model (FR-011, FR-019)."""

import asyncio
from datetime import datetime
from typing import Final

import structlog

from contracts.lanes import LaneState
from contracts.settings import ModelEntry
from contracts.topology import demand_subject, lane_stream
from lane_worker.forking.host_child import PING_S
from lane_worker.forking.host_messages import Finished
from lane_worker.forking.outcome import HostLost, LoadFailed, SlotTaken
from lane_worker.residence.quarantine import Quarantined
from lane_worker.runtime.assembly import Setup, assemble, open_up
from lane_worker.runtime.cold_start import ColdStartLog
from lane_worker.runtime.heartbeat import Heartbeat
from lane_worker.runtime.host_watch import HostWatch
from lane_worker.runtime.keeping import Keeping
from lane_worker.runtime.lane_hand import in_order
from lane_worker.runtime.lane_status import LaneStatus
from lane_worker.runtime.leaving import drain
from lane_worker.runtime.streak import Renew, Rest, Serve
from lane_worker.runtime.warm_up import TooLargeForCard, warm_up_failure, warm_up_request, warm_up_size
from lane_worker.runtime.warmth import Evict, Recycle, Stay, Step
from ops.ending import end
from ops.telemetry.probes import ProcessHealth, judged_by
from ops.telemetry.tracing import span
from ops.waiting import set_within, unless

RESTART_FIRST_S: Final = 0.5
RESTART_MAX_S: Final = 30.0
# A card that was short of memory in a warm-up is seldom less so a minute later, and each try loads everything again.
TOO_LARGE_RETRY_S: Final = 600.0
# A host that missed this many seconds of pings is given no task; one that misses `health_timeout_s` is killed.
SILENT_S: Final = 3 * PING_S

# A lane that was evicted has no model in memory, by its settings, and loads it for the next request.
READY_STATES: Final = frozenset({LaneState.WARM, LaneState.BUSY, LaneState.EVICTED})

log = structlog.get_logger("lane")


class LaneWorker:
    """One lane process: a supervisor without torch, and a pipeline host child that holds the model."""

    def __init__(self, setup: Setup, *, model: ModelEntry, started_at: datetime) -> None:
        """*started_at* is when the process began, from which its cold start is counted."""
        self._link = setup.link
        self._model = model
        self._windows = setup.catalog.windows
        self._warmth = setup.catalog.warmth
        self._name = setup.name
        self._parts = parts = assemble(
            setup,
            {model.name: model},
            role="lane",
            stream=lane_stream(model.name),
            ordered=in_order(setup.link, lane_stream(model.name), setup.catalog.degraded),
            on_wait=lambda detail: self._status.show_start(LaneState.STARTING, detail),
            on_busy=self._on_busy,
        )
        self._scratch, self._host, self._display = parts.scratch, parts.host, parts.display
        self._residence, self._runner, self._loop = parts.residence, parts.runner, parts.loop
        self._distrust = parts.distrust
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
        self._status = LaneStatus(self._heartbeat)
        self._keeping = Keeping(
            setup.link, model=model.name, worker=setup.name, warmth=self._warmth, windows=self._windows
        )
        self._watch = HostWatch(
            parts.residence,
            limit_s=self._windows.health_timeout_s,
            look_every_s=self._windows.heartbeat_s,
            on_hang=lambda silent_s: self._status.hangs(silent_s),
        )
        self._has_trouble = False
        self._demand = asyncio.Event()
        self._renew_because: str | None = None

    async def run(self, stop: asyncio.Event, *, for_quota: asyncio.Event | None = None) -> None:
        """Serves until *stop*; then finishes the task in hand within `windows.drains_s`, releases and leaves.

        It gives up a load that is under way at *stop*. Where *for_quota* is set by then, the lane's next report says
        that it leaves for a quota.
        Raises SlotTaken when another process holds the card, HostLost when its host does not even start,
        TransportUnavailable when the server is away at the start.
        """
        with judged_by(self.standing):
            await self._run(stop, for_quota)

    def standing(self) -> ProcessHealth:
        """The lane's readiness, by its heartbeat: it is ready while it is connected and takes requests, or was evicted
        on purpose."""
        state, detail = self._heartbeat.state, self._heartbeat.detail
        if not self._link.connection.is_connected:
            return ProcessHealth(False, state.value, "it is not connected to nats-server")
        return ProcessHealth(state in READY_STATES, state.value, detail)

    async def _run(self, stop: asyncio.Event, for_quota: asyncio.Event | None) -> None:
        await open_up(self._parts, [self._model.name], role="lane")
        beating = asyncio.create_task(self._heartbeat.run())
        displaying = asyncio.create_task(self._display.run())
        recording = asyncio.create_task(self._starts.run())
        watching = asyncio.create_task(self._watch.run())
        serving = asyncio.create_task(self._serve(stop))
        stopped = asyncio.create_task(stop.wait())
        try:
            keeping = (beating, displaying, recording, watching)
            await asyncio.wait({serving, stopped, *keeping}, return_when=asyncio.FIRST_COMPLETED)
            for keeper in keeping:
                if keeper.done():
                    await keeper  # a lane that cannot report must not look warm: fail, and be restarted
            if stop.is_set():
                self._status.drain(for_quota=for_quota is not None and for_quota.is_set())
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
            await self._link.core.subscribe(demand_subject(self._model.name), lambda *_: self._demand.set())
        wait_s = RESTART_FIRST_S
        while not stop.is_set():
            if self._residence.quarantined or self._display.quarantine is not None:
                self._starts.failed("the slot is quarantined")
                self._status.show(LaneState.UNHEALTHY, "the slot is quarantined")
                if await unless(stop.wait(), self._display.usable()):
                    self._residence.lift()
                continue
            try:
                with span("cold_start", {"model": self._model.name, "warmlane.worker": self._name}):
                    await self._warm_up()
                wait_s = RESTART_FIRST_S
                self._status.succeeded()
                await self._stay_warm(stop)
            except Quarantined:
                continue
            except (HostLost, LoadFailed) as error:
                pause_s = TOO_LARGE_RETRY_S if isinstance(error, TooLargeForCard) else wait_s
                log.error("not_warm", error=str(error), again_in_s=pause_s)
                self._starts.failed(str(error))
                self._status.failed(str(error), again_in_s=pause_s)
                await set_within(pause_s, stop)
                wait_s = min(RESTART_MAX_S, wait_s * 2)

    async def _warm_up(self) -> None:
        """Starts the host, loads, and runs the generation of `warm_up_request`.

        Raises SlotTaken, HostLost, LoadFailed, Quarantined, WarmUpFailed.
        """
        if self._host.pid is None:
            self._display.take()
            ready = await self._residence.open()
            self._scratch.remove_what_others_left()
            await self._runner.accounts.close_for_last_holder(ready)
        renew_because, self._renew_because = self._renew_because, None
        self._status.show_start(LaneState.LOADING, renew_because or "")
        resident = await self._residence.ready(self._model.name, renew_because=renew_because or "")
        size = str(warm_up_size(self._model))
        self._status.show_start(LaneState.LOADING, "; ".join(filter(None, [renew_because, f"warms up with {size}"])))
        self._scratch.ensure()
        outcome = await self._host.generate(warm_up_request(self._model, self._scratch.folder), lambda _: None)
        if not isinstance(outcome, Finished):
            await self._host.kill()
            raise warm_up_failure(self._model, outcome)
        load_s = round(resident.receipt.load_s, 3)
        log.info("warm", load_s=load_s, rss_bytes=resident.memory.rss_bytes, warmed_up_with=size)
        self._keeping.warmed_up(resident, outcome.memory)
        self._status.show(LaneState.WARM)
        if not self._status.drains:
            self._starts.warm()

    async def _stay_warm(self, stop: asyncio.Event) -> None:
        """Serves until the pipeline is gone, or is to be loaded anew. Raises Quarantined, HostLost."""
        while self._is_loaded() and not stop.is_set():
            if self._host.health_age_s > SILENT_S:
                # A host that hangs runs nothing: leave its tasks to another worker.
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
        """A lane that no task can reach must not show as warm: the gateway would send it every request."""
        had_trouble, self._has_trouble = self._has_trouble, self._loop.trouble is not None
        if self._loop.trouble is not None and not had_trouble:
            self._status.show(LaneState.UNHEALTHY, self._loop.trouble)
        elif had_trouble and not self._has_trouble:
            self._status.show(*self._when_idle())

    async def _distrusts(self, stop: asyncio.Event) -> bool:
        """Whether the lane has to warm up again before it takes another task (ADR 0026), now that its rest is over."""
        match self._distrust.advice():
            case Renew():
                if self._is_loaded():
                    self._renew_because = self._distrust.words()
                self._distrust.renew()
            case Rest(pause_s):
                self._distrust.rest(pause_s)
                self._status.show(*self._when_idle())
                await set_within(pause_s, stop)
                self._distrust.rested()
            case Serve():
                return False
        return True

    def _when_idle(self) -> tuple[LaneState, str]:
        """What the lane reports while it has no task in hand."""
        match self._distrust.advice():
            case Rest(pause_s):
                return LaneState.UNHEALTHY, f"{self._distrust.words()}; it tries itself again in {pause_s:g} s"
            case Renew():
                return LaneState.LOADING, self._distrust.words()
        # without its model the lane is not warm: it is about to load again
        return (LaneState.WARM if self._is_loaded() else LaneState.LOADING), ""

    async def _next_step(self, *, queue_is_empty: bool) -> Step:
        memory = self._runner.accounts.memory
        return await self._keeping.next_step(self._residence.resident, memory, queue_is_empty=queue_is_empty)

    async def _may_recycle(self, *, queue_is_empty: bool) -> bool:
        """Takes the lane out of service, then decides again, and puts it back where the answer is no.

        Two lanes that are worn out together both announce it before either looks, so they never both leave.
        """
        if not await self._status.announce(LaneState.LOADING, "about to be recycled"):
            return False
        if isinstance(await self._next_step(queue_is_empty=queue_is_empty), Recycle):
            return True
        self._status.show(LaneState.WARM)
        return False

    async def _evict(self, stop: asyncio.Event) -> bool:
        """Unloads, and waits until a request asks for the model. Returns whether the model is to be loaded again.

        Raises Quarantined, HostLost.
        """
        self._demand.clear()
        if not await self._status.announce(LaneState.EVICTED, "no task for a while"):
            return False
        # a task that was sent here before the eviction was known still finds the pipeline
        if await self._loop.serve_one(stop) or self._demand.is_set() or stop.is_set():
            self._status.show(LaneState.WARM)
            return False
        await self._residence.evict()
        await unless(stop.wait(), self._demand.wait())
        if not stop.is_set():
            self._starts.demanded()
        return True

    def _is_loaded(self) -> bool:
        return self._residence.resident is not None

    def _on_busy(self, busy: bool) -> None:
        if busy:
            self._status.show(LaneState.BUSY)
        else:
            self._keeping.task_ended()
            self._status.show(*self._when_idle())
