"""The whole system on one machine: started in turn, kept running, drained and ended."""

import asyncio
import os
import shutil
import time
from datetime import UTC, datetime
from functools import partial
from typing import Final

from rich.markup import escape

from ops.background import Background
from ops.commands.addresses import Addresses
from ops.commands.up.processes import STOP_S, Processes
from ops.commands.up.screen import Screen
from ops.commands.up.setup import SystemSetup
from ops.commands.up.start import unchecked, until_answers
from ops.commands.up.start_report import StartReport
from ops.ending import end
from ops.lanes.left_behind import forget_the_dead
from ops.lanes.quota import POLL_S, Quota, QuotaError
from ops.machine.processes import Process
from ops.machine.running import is_running
from ops.nats.access import NatsAccess, make_users, password_variable
from ops.nats.api_keys import forget_revoked, read_keys
from ops.nats.bucket import Bucket
from ops.nats.buckets import HEARTBEATS, LEADERSHIPS
from ops.nats.link import NatsLink
from ops.nats.provisioning import NoKeys, provision, wanted
from ops.nats.retired import retire
from ops.nats.server import embedded_url
from ops.nats.store_keeper import StoreKeeper
from ops.waiting import set_within

# The degraded worker starts when the lanes have imported their libraries, and a standby when a degraded worker leads.
# Each starts after this time at the latest. On a machine with few cores, starting all at once would delay the lanes by
# seconds.
TURN_S: Final = 15.0


class Stack:
    """One `warmlane up`."""

    def __init__(self, setup: SystemSetup, screen: Screen, *, store_lock: int) -> None:
        """*store_lock* is the descriptor of `holding_store`. Raises QuotaError."""
        self._setup, self._screen, self._store_lock = setup, screen, store_lock
        self._begun_s, self._begun_at = time.monotonic(), datetime.now(UTC)
        self._quota = Quota(setup.quota_file, setup.catalog.models)
        url = embedded_url(setup.nats_port)
        self._users = make_users(setup.data_dir, url)
        self._nats = NatsAccess(urls=url, user="admin", password=self._users[password_variable("admin")])

    @property
    def addresses(self) -> Addresses:
        """Where clients on this machine find the system."""
        return Addresses(pid=os.getpid(), command="up", url=self._setup.url, nats_url=self._nats.urls)

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Starts everything and keeps it running until *stop*, then drains; *hurry* kills what still drains."""
        processes = Processes(
            self._setup, self._nats, self._users, store_lock=self._store_lock, on_death=self._on_death
        )
        report = StartReport(
            self._setup, self._screen, processes.failing, begun_s=self._begun_s, begun_at=self._begun_at
        )
        shutil.rmtree(processes.metrics, ignore_errors=True)  # of an earlier run
        async with asyncio.TaskGroup() as group:
            group.create_task(processes.server.run())
            if processes.shares_forks:
                processes.forget_forks()  # of an earlier run that was killed
                group.create_task(processes.forks.run())
            try:
                link = await NatsLink.connect(self._nats, name="up")
                try:
                    await provision(link, wanted(self._setup.catalog, keep_s=self._setup.keep_s))
                    await retire(link)
                    report.needs_key = await self._judge_access(link)
                    await self._forget_earlier_runs()
                    group.create_task(processes.gateway.run())
                    await processes.forks_listen()
                    if self._setup.lane_count:
                        group.create_task(processes.supervisor.run())
                    await Bucket(link, HEARTBEATS, reports=False).watch(report.on_lane)
                    await Bucket(link, LEADERSHIPS, reports=False).watch(report.on_leader)
                    in_turn = group.create_task(self._start_in_turn(group, processes.degraded, report))
                    polling = group.create_task(self._poll_quota())
                    keeping = group.create_task(Background().keep("store", self._keeper(link, processes.server).run))
                    await self._serve(report, stop)
                    await end(in_turn, polling, keeping)
                    report.drains()
                    self._screen.say("draining: the tasks in hand are finished (Ctrl-C again stops at once)")
                    await processes.drain(hurry)
                    self._screen.say("stopped")
                finally:
                    await link.close()
            finally:
                await processes.end()

    async def _forget_earlier_runs(self) -> None:
        # on a connection of its own, so that these buckets are followed no longer than needed
        link = await NatsLink.connect(self._nats, name="up")
        try:
            await forget_the_dead(link, is_alive=is_running)
        finally:
            await link.close()

    async def _judge_access(self, link: NatsLink) -> bool:
        """Whether a client needs an API key. Raises NoKeys where anybody could come in without one."""
        await forget_revoked(link, now=datetime.now(UTC))
        keys = await read_keys(link)
        is_loopback = self._setup.host.is_loopback
        if not keys.in_force and not is_loopback:
            raise NoKeys
        if self._setup.tls is None and not is_loopback:
            self._screen.say(
                "[yellow]no TLS[/]: keys and videos can be read in transit; --tls-cert and --tls-key prevent it"
            )
        if not keys.was_one_made:
            reached = (f"who reaches {each}" for each in self._setup.behind.allowed_hosts)
            who = escape(" or ".join(["on this machine", *reached]))
            self._screen.say(f"open: everybody {who} may do everything, until `warmlane keys add` makes the first key")
        elif not keys.in_force:
            self._screen.say(
                "[yellow]every API key is revoked[/], so nobody may call; `warmlane keys add` makes a new one"
            )
        return keys.was_one_made

    async def _start_in_turn(self, group: asyncio.TaskGroup, degraded: list[Process], report: StartReport) -> None:
        first, *standbys = degraded
        if self._setup.lane_count:
            await set_within(TURN_S, report.lanes_imported)
        group.create_task(first.run())
        if standbys:
            await set_within(TURN_S, report.led)
        for standby in standbys:
            group.create_task(standby.run())

    async def _serve(self, report: StartReport, stop: asyncio.Event) -> None:
        async def say_when_answering() -> None:
            tls = None if self._setup.tls is None else unchecked()
            await until_answers(self._setup.host.near, self._setup.port, tls)
            await report.gateway_answers()

        answering = asyncio.create_task(say_when_answering())
        await stop.wait()
        await end(answering)

    async def _poll_quota(self) -> None:
        # the supervisor obeys the file; this reports a mistake in it where the operator looks
        while True:
            await asyncio.sleep(POLL_S)
            try:
                self._quota.poll()
            except QuotaError as error:
                self._screen.say(f"[red]the quota stays as it was[/]: {escape(str(error))}")

    def _keeper(self, link: NatsLink, server: Process) -> StoreKeeper:
        return StoreKeeper(
            link,
            self._setup.data_dir / "nats",
            restart=partial(server.restart, within_s=STOP_S),
            say=lambda text: self._screen.say(f"[yellow]{escape(text)}[/]"),
        )

    def _on_death(self, process: Process, status: int, wait_s: float) -> None:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        self._screen.say(f"[red]{process.name} ended[/] ({how}); again in {wait_s:g} s. Why: {process.log_file}")
