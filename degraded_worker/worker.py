"""The degraded worker: every model on one slot, one at a time, for tasks that no lane takes (FR-001..003, FR-016)."""

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from contracts.lanes import SlotState
from contracts.order import Policy
from contracts.topology import DEGRADED
from degraded_worker.hand import Hand
from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host import Host
from lane_worker.forking.outcome import HostLost, SlotTaken
from lane_worker.residence.quarantine import Quarantined
from lane_worker.residence.residence import Residence
from lane_worker.runtime.assembly import Setup, assemble, open_up
from lane_worker.runtime.leaving import drain
from lane_worker.runtime.order import SLICE_ENDS, Order, OrderedRunner
from lane_worker.runtime.outcome import Runner
from lane_worker.runtime.streak import Renew, Rest, Serve
from ops.ending import end
from ops.nats.errors import TransportUnavailable
from ops.nats.leader import Leader
from ops.nats.link import NatsLink
from ops.telemetry import metrics
from ops.telemetry.probes import ProcessHealth, judged_by
from ops.waiting import set_within, unless

RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 30.0

log = structlog.get_logger("degraded")


class DegradedWorker:
    """One process: a candidate for the leadership, and while it leads, the one consumer of the degraded queue.

    It becomes the leader, then takes the slot's lock, then fetches. It leaves in the reverse order: it finishes the
    task in hand, unloads the pipeline, unlocks the slot, and then gives the leadership back.
    """

    def __init__(self, setup: Setup) -> None:
        self._link = setup.link
        self._standing = ProcessHealth(False, "starting")
        self._models = setup.catalog.models
        self._windows = setup.catalog.windows
        self._name, self._slot = setup.name, setup.slot
        self._fork_server = ForkServer()
        self._parts = parts = assemble(
            setup,
            self._models,
            role="degraded",
            stream=DEGRADED,
            fork_server=self._fork_server,
            ordered=partial(self._ordered, setup.link, setup.catalog.degraded),
        )
        self._scratch, self._host, self._display = parts.scratch, parts.host, parts.display
        self._residence, self._runner, self._loop = parts.residence, parts.runner, parts.loop
        self._distrust = parts.distrust
        self._leader = Leader(
            setup.link,
            worker=setup.name,
            owner=parts.owner,
            slot=setup.slot,
            order=lambda: self._order.state(datetime.now(UTC)),
            serves_at_once=False,
        )

    def _ordered(
        self, link: NatsLink, policy: Policy, owner: str, residence: Residence, runner: Runner
    ) -> tuple[Hand, OrderedRunner]:
        for cause in SLICE_ENDS:
            metrics.order_slices.begin(cause)
        self._order = order = Order(
            policy, resident=lambda: None if residence.resident is None else residence.resident.model
        )
        hand = Hand(link, order=order, owner=owner, leads=self._leads, expect=partial(self._expect, residence))
        return hand, OrderedRunner(runner, order)

    def _expect(self, residence: Residence, model: str) -> None:
        entry = self._models.get(model)
        if entry is not None:
            residence.read_ahead.expect(residence.host.folder_of(entry))

    def _leads(self) -> bool:
        return self._leader.is_leader(time.monotonic())

    async def run(self, stop: asyncio.Event) -> None:
        """Serves whenever this worker leads, until *stop*; then finishes the task in hand within `windows.drains_s`,
        and leaves.

        Raises TransportUnavailable when the server is away at the start.
        """
        with judged_by(self.standing):
            await self._run(stop)

    def standing(self) -> ProcessHealth:
        """This worker's readiness: it is ready while it leads, and while it could."""
        if not self._link.connection.is_connected:
            return ProcessHealth(False, self._standing.state, "it is not connected to nats-server")
        if self._display.quarantine is not None:
            return ProcessHealth(False, "quarantined", "its slot is quarantined; `warmlane slots` says why")
        return self._standing

    async def _run(self, stop: asyncio.Event) -> None:
        await open_up(self._parts, self._models, role="degraded")
        await self._leader.start()
        displaying = asyncio.create_task(self._display.run())
        serving = asyncio.create_task(self._serve(stop))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, stopped, displaying}, return_when=asyncio.FIRST_COMPLETED)
            if displaying.done():
                await displaying  # without it a quarantine would not be stored: fail, and be restarted
            self._standing = ProcessHealth(False, "leaving", "it finishes what it has in hand")
            if not serving.done():
                await drain(
                    serving,
                    drain_s=self._windows.drains_s(self._models.values()),
                    leave=self._runner.leave,
                    kill=self._host.kill,
                    waits_for_server_s=self._loop.waits_for_server_s,
                    unanswered_s=self._windows.lease_s,
                )
            if not serving.cancelled():
                await serving
            await self._display.leave()
        finally:
            await end(serving, stopped, displaying)
            await self._loop.close()
            await self._fork_server.close()
            self._scratch.remove()
            log.info("degraded_worker_left", worker=self._name)

    async def _serve(self, stop: asyncio.Event) -> None:
        wait_s = RETRY_FIRST_S
        while not stop.is_set():
            try:
                if await unless(stop.wait(), self._candidate()):
                    await self._lead(stop)
                    await unless(stop.wait(), self._begin_anew())
                wait_s = RETRY_FIRST_S
            except (SlotTaken, HostLost, TransportUnavailable) as error:
                # a standby on another slot may do better
                log.error("cannot_serve", slot=self._slot, error=str(error), again_in_s=wait_s)
                self._standing = ProcessHealth(False, "cannot_serve", str(error))
                await set_within(wait_s, stop)
                wait_s = min(RETRY_MAX_S, wait_s * 2)

    async def _begin_anew(self) -> None:
        """After tasks that failed in a row, this worker has given the leadership back and ended its host: a standby on
        another card may do better. Returns when this worker may lead again: at once, or after a rest where a fresh host
        failed as well."""
        match self._distrust.advice():
            case Renew():
                self._distrust.renew()
            case Rest(pause_s):
                self._distrust.rest(pause_s)
                words = f"{self._distrust.words()}; it serves again in {pause_s:g} s"
                self._display.show(SlotState.EMPTY, None, words)
                self._standing = ProcessHealth(False, "rests", words)
                await asyncio.sleep(pause_s)
                self._distrust.rested()

    async def _candidate(self) -> None:
        """Returns when this worker leads. While its slot is quarantined it does not compete."""
        self._standing = ProcessHealth(False, "starting")
        await self._display.usable()
        self._residence.lift()
        await self._rehearse()
        log.info("stands_by", worker=self._name, slot=self._slot)
        self._standing = ProcessHealth(True, "stands_by")
        await self._leader.campaign()

    async def _rehearse(self) -> None:
        """Forks a host that holds neither slot nor pipeline, and ends it: taking over then costs one fork. Otherwise a
        new leader would wait seconds for the fork server's imports before it serves. Raises HostLost.
        """
        host = Host(
            slot="cpu-0",
            lock_dir=self._scratch.folder,
            models_dir=self._scratch.folder,
            fork_server=self._fork_server,
        )
        try:
            await host.start()
        finally:
            await host.close()

    async def _lead(self, stop: asyncio.Event) -> None:
        leave = asyncio.Event()
        holding = asyncio.create_task(self._leader.hold())
        stopped = asyncio.create_task(stop.wait())
        for task in (holding, stopped):
            task.add_done_callback(lambda _: leave.set())
        try:
            # the slot's last leader may have quarantined it while this worker stood by
            if await self._display.look() is None:
                await self._serve_as_leader(leave)
            if holding.done():
                await holding
        except Quarantined as error:
            log.error("quarantined", slot=self._slot, error=str(error))
        finally:
            # give the messages that wait back first: this worker takes no more of them
            await self._loop.close()
            # resign last: a standby that became the leader earlier would kill the pipeline host that is leaving
            await self._residence.close()
            if self._residence.quarantined:
                await unless(stop.wait(), self._display.settled())
            await end(holding, stopped)
            await self._leader.resign()

    async def _serve_as_leader(self, leave: asyncio.Event) -> None:
        self._display.take()
        while not leave.is_set() and not self._residence.quarantined and self._leads():
            if self._host.pid is None:
                ready = await self._residence.open(term=self._leader.term)
                self._scratch.remove_what_others_left()
                await self._runner.accounts.close_for_last_holder(ready)
                self._standing = ProcessHealth(True, "leads")
                self._leader.serve()
                log.info("serves", worker=self._name, slot=self._slot, term=self._leader.term)
            await self._loop.serve_one(leave)
            if not isinstance(self._distrust.advice(), Serve):
                return
