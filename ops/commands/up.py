"""`warmlane up`: the whole system on one machine, on loopback unless `--host` says otherwise."""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Final, cast

import click
import msgspec
import psutil
from rich.console import Console
from rich.markup import escape

from contracts.lanes import LaneHeartbeat, LaneState, Leadership
from contracts.settings import Catalog, ModelEntry, SettingsError, load_settings
from ops.background import Background
from ops.commands.addresses import DEFAULT_URL, Addresses, telling
from ops.commands.behind import Behind, behind_options
from ops.commands.keys import forget_revoked, read_keys
from ops.commands.options import (
    ListenHost,
    Shared,
    cors_origins_option,
    data_dir_option,
    gpus_option,
    host_option,
    keep_option,
    lanes_option,
    log_size_option,
    nats_port_option,
    oom_snapshots_option,
    port_option,
    profile_option,
    quota_option,
    require_kept_long_enough,
    settings_option,
    slowed,
    snapshotting,
    step_seconds_option,
    tls_cert_option,
    tls_key_option,
)
from ops.commands.start import DENIED, StartStage, how_started, unchecked, until_answers
from ops.ending import end
from ops.lanes.left_behind import forget_the_dead
from ops.lanes.quota import POLL_S, Quota, QuotaError
from ops.lanes.supervisor import DRAIN_EXTRA_S
from ops.machine.fork_socket import SHARED_FORK_SERVER, can_listen, importing, remove
from ops.machine.placement import slots, wanted_lanes
from ops.machine.ports import require_distinct, require_free
from ops.machine.processes import Process, asked_to_end, only_one, warmlane_command
from ops.machine.tls import Tls, tls_of
from ops.nats.access import NatsAccess, environment_for, make_users, password_variable
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import HEARTBEATS, LEADERSHIPS
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.nats.link import NatsLink
from ops.nats.provisioning import NoKeys, NotProvisioned, provision, wanted
from ops.nats.server import NATS_HOST, NoNatsServer, embedded_command, embedded_url, find_nats_server
from ops.nats.store_keeper import StoreKeeper
from ops.nats.store_lock import holding_store
from ops.telemetry.export import METRICS_FOLDER, METRICS_LISTEN
from ops.telemetry.line_writer import SafeText
from ops.telemetry.logs import configure_logging
from ops.waiting import set_within

STOP_S: Final = 10.0
# The supervisor kills lanes that do not drain; it needs so much longer for that.
SUPERVISOR_EXTRA_S: Final = 5.0
# The degraded worker starts when the lanes have their libraries imported, and a standby when it leads, or after so
# long: on a machine with few cores, all at once would hold up the lanes by seconds.
TURN_S: Final = 15.0
BEFORE_WARM: Final = frozenset({LaneState.STARTING, LaneState.LOADING})
# How long the shared fork server may take to accept workers. On an idle machine it takes a few tenths of a second.
FORKS_LISTEN_S: Final = 5.0
COLOURS: Final = {LaneState.WARM: "green", LaneState.CRASH_LOOPING: "red"}
# What `curl` asks for once waits a minute: enough for what may take so long at most, since that is far from usual.
CURL_WAITS_FOR_S: Final = 600.0
PICTURE: Final = "PICTURE.png"
PROMPTS: Final = ("a red fox in fresh snow", "a paper boat on a quiet lake", "a lantern in the rain")


class Stack:
    """The processes of one `warmlane up`."""

    def __init__(
        self,
        *,
        console: Console,
        catalog: Catalog,
        host: ListenHost,
        port: int,
        tls: Tls | None,
        cors_origins: tuple[str, ...],
        behind: Behind,
        nats_port: int,
        data_dir: Path,
        lanes: Mapping[str, int],
        gpus: int | None,
        quota_file: Path | None,
        standbys: int,
        settings: Path | None,
        keep_s: float,
        log_max_bytes: int,
        step_seconds: float,
        oom_snapshots: int,
        store_lock: int,
    ) -> None:
        """*store_lock* is the descriptor of `holding_store`."""
        self._console = console
        self._catalog = catalog
        self._host, self._port = host, port
        self._tls, self._cors_origins, self._behind = tls, cors_origins, behind
        self._needs_key = True
        self._nats_port = nats_port
        self._data_dir = data_dir
        self._lanes = lanes
        self._gpus = gpus
        self._quota_file = quota_file
        self._quota = Quota(quota_file, catalog.models)
        self._standbys = standbys
        url = embedded_url(nats_port)
        self._users = make_users(data_dir, url)
        self._nats = NatsAccess(urls=url, user="admin", password=self._users[password_variable("admin")])
        self._shared = Shared(self._nats, data_dir, catalog.profile, settings)
        self._keep_s = keep_s
        self._log_max_bytes = log_max_bytes
        self._step_seconds = step_seconds
        self._oom_snapshots = oom_snapshots
        self._store_lock = store_lock
        self._forks = data_dir / "forks"
        self._metrics = data_dir / "metrics"
        self._shares_forks = (
            SHARED_FORK_SERVER not in os.environ and hasattr(os, "pidfd_open") and can_listen(self._forks)
        )
        self._states: dict[str, LaneState] = {}
        self._told: dict[str, tuple[LaneState, bool]] = {}
        self._leader: str | None = None
        self._lanes_imported = asyncio.Event()
        self._led = asyncio.Event()
        self._parts: tuple[Process, ...] = ()
        self._answers = False
        self._told_start: StartStage | None = None
        self._draining = False
        self._begun_s = time.monotonic()
        self._begun_at = datetime.now(UTC)

    @property
    def url(self) -> str:
        return self._host.url("http" if self._tls is None else "https", self._port)

    @property
    def addresses(self) -> Addresses:
        """Where clients on this machine find it."""
        return Addresses(pid=os.getpid(), command="up", url=self.url, nats_url=self._nats.urls)

    @property
    def _wanted_count(self) -> int:
        return sum(self._lanes.values())

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Starts everything and keeps it running until *stop*, then drains; *hurry* kills what still drains."""
        on_store = embedded_command(self._data_dir, self._nats_port)
        server = self._process("nats-server", on_store, secrets=self._users, inherits=[self._store_lock])
        forks = self._process("fork-server", warmlane_command("fork-server", str(self._forks)))
        gateway = self._process("gateway", warmlane_command("gateway", *self._gateway_arguments()))
        supervisor = self._process("supervisor", warmlane_command("supervisor", *self._supervisor_arguments()))
        slot = slots(self._catalog.profile, lanes=self._wanted_count, gpus=self._gpus).degraded
        degraded = [
            self._process(name, warmlane_command("degraded", *self._degraded_arguments(name, slot)))
            for name in (f"degraded-{number}" for number in range(1 + self._standbys))
        ]
        shutil.rmtree(self._metrics, ignore_errors=True)  # of an earlier run
        self._parts = (server, forks, gateway, supervisor, *degraded)
        async with asyncio.TaskGroup() as group:
            group.create_task(server.run())
            if self._shares_forks:
                remove(self._forks)  # of an earlier run that was killed
                group.create_task(forks.run())
            try:
                link = await NatsLink.connect(self._nats, name="up")
                try:
                    await provision(link, wanted(self._catalog, keep_s=self._keep_s))
                    await self._judge_access(link)
                    await self._forget_earlier_runs()
                    group.create_task(gateway.run())
                    await self._forks_listen()
                    if self._wanted_count:
                        group.create_task(supervisor.run())
                    await Bucket(link, HEARTBEATS, reports=False).watch(self._on_lane)
                    await Bucket(link, LEADERSHIPS, reports=False).watch(self._on_leader)
                    in_turn = group.create_task(self._start_in_turn(group, degraded))
                    polling = group.create_task(self._poll_quota())
                    keeper = StoreKeeper(
                        link,
                        self._data_dir / "nats",
                        restart=partial(server.restart, within_s=STOP_S),
                        say=lambda text: self._say(f"[yellow]{escape(text)}[/]"),
                    )
                    keeping = group.create_task(Background().keep("store", keeper.run))
                    await self._serve(stop)
                    await end(in_turn, polling, keeping)
                    await self._drain(gateway, supervisor, degraded, hurry)
                finally:
                    await link.close()
            finally:
                for process in (gateway, *degraded, forks):
                    process.kill()
                supervisor.send(signal.SIGQUIT)
                await supervisor.stop(within_s=STOP_S)
                await server.stop(within_s=STOP_S)
                if self._shares_forks:
                    remove(self._forks)

    async def _forget_earlier_runs(self) -> None:
        # by a connection of its own, which follows those buckets no longer than that
        link = await NatsLink.connect(self._nats, name="up")
        try:
            await forget_the_dead(link, is_alive=psutil.pid_exists)
        finally:
            await link.close()

    async def _forks_listen(self) -> None:
        # a worker that finds nobody there imports torch itself, which is what the shared server is to spare it
        if not self._shares_forks:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FORKS_LISTEN_S):
                while True:
                    if self._forks.exists() or importing(self._forks).exists():
                        return
                    await asyncio.sleep(0.02)

    async def _judge_access(self, link: NatsLink) -> None:
        await forget_revoked(link, now=datetime.now(UTC))
        keys = await read_keys(link)
        if not keys.in_force and not self._host.is_loopback:
            raise NoKeys
        if self._tls is None and not self._host.is_loopback:
            self._say(
                "[yellow]no TLS[/]: keys and videos can be read on their way; --tls-cert and --tls-key prevent it"
            )
        self._needs_key = keys.was_one_made
        if not self._needs_key:
            who = " or ".join(["on this machine", *(f"who reaches {each}" for each in self._behind.allowed_hosts)])
            self._say(f"open: everybody {escape(who)} may do everything, until `warmlane keys add` makes the first key")
        elif not keys.in_force:
            self._say("[yellow]every API key is revoked[/], so nobody may call; `warmlane keys add` makes a new one")

    async def _start_in_turn(self, group: asyncio.TaskGroup, degraded: list[Process]) -> None:
        first, *standbys = degraded
        if self._wanted_count:
            await set_within(TURN_S, self._lanes_imported)
        group.create_task(first.run())
        if standbys:
            await set_within(TURN_S, self._led)
        for standby in standbys:
            group.create_task(standby.run())

    async def _serve(self, stop: asyncio.Event) -> None:
        answering = asyncio.create_task(self._tell_when_answering())
        await stop.wait()
        await end(answering)

    async def _tell_when_answering(self) -> None:
        await until_answers(self._host.near, self._port, None if self._tls is None else unchecked())
        self._answers = True
        self._say(f"[bold]{self.url}[/]  ·  docs {self.url}/docs  ·  logs {self._data_dir / 'logs'}")
        needs = " (with a key of the scope `metrics`)" if self._needs_key else ""
        self._say(f"metrics of every process, for Prometheus: {self.url}/metrics{needs}")
        if not self._wanted_count:
            self._say("no lanes were asked for: the degraded worker serves every request")
        while self._told_start is not StartStage.READY:
            self._tell_when_ready()
            await asyncio.sleep(POLL_S)

    async def _poll_quota(self) -> None:
        # the supervisor obeys the file; this tells a mistake in it where the operator looks
        while True:
            await asyncio.sleep(POLL_S)
            try:
                self._quota.poll()
            except QuotaError as error:
                self._say(f"[red]the quota stays as it was[/]: {escape(str(error))}")

    async def _drain(
        self, gateway: Process, supervisor: Process, degraded: list[Process], hurry: asyncio.Event
    ) -> None:
        self._draining = True
        self._say("draining: the tasks in hand are finished (Ctrl-C again stops at once)")
        within_s = self._catalog.windows.drains_s(self._catalog.models.values()) + DRAIN_EXTRA_S

        async def kill_in_a_hurry() -> None:
            await hurry.wait()
            for process in (gateway, *degraded):
                process.kill()
            supervisor.send(signal.SIGQUIT)

        hurrying = asyncio.create_task(kill_in_a_hurry())
        await asyncio.gather(
            gateway.stop(within_s=STOP_S),
            supervisor.stop(within_s=within_s + SUPERVISOR_EXTRA_S),
            *(worker.stop(within_s=within_s) for worker in degraded),
        )
        await end(hurrying)
        self._say("stopped")

    def _on_lane(self, entry: Versioned[LaneHeartbeat]) -> None:
        lane = entry.value
        if lane is None:
            return
        if lane.started_at < self._begun_at:
            return  # what an earlier run left in the bucket
        # busy lanes are warm ones: only what changes for a caller is told
        state = lane.state.readiness
        self._states[lane.worker] = state
        if not (self._told.get(lane.worker) == (LaneState.CRASH_LOOPING, True) and state in BEFORE_WARM):
            self._tell_lane(lane, state)
        states = list(self._states.values())
        if len(states) - states.count(LaneState.STARTING) >= self._wanted_count:
            self._lanes_imported.set()
        self._tell_when_ready()

    def _tell_lane(self, lane: LaneHeartbeat, state: LaneState) -> None:
        news = (state, bool(lane.detail))
        if self._told.get(lane.worker) == news:
            return
        self._told[lane.worker] = news
        detail, log_file = escape(lane.detail), self._log_file(lane.worker)
        if state is LaneState.STARTING and detail:
            self._say(f"[red]{lane.worker}[/] {detail}. Why: {log_file}")
            return
        text = f"lane {lane.worker} is [{COLOURS.get(state, 'yellow')}]{state.value}[/]"
        if state is LaneState.WARM and lane.warm_after_s:
            text += f" after {lane.warm_after_s:.1f} s"
        if detail:
            text += f": {detail}"
        if state is LaneState.CRASH_LOOPING:
            text += f". Why: {log_file}"
        if state in DENIED and self._lanes.get(lane.model) == 1:
            text += "; its requests go to the degraded worker"
        self._say(text)

    def _tell_when_ready(self) -> None:
        failing = [part.name for part in self._parts if part.is_failing]
        states = list(self._states.values())
        start = how_started(
            states, wanted=self._wanted_count, leads=self._leader is not None, answers=self._answers, failing=failing
        )
        if self._draining or start is StartStage.NOT_YET or start is self._told_start:
            return
        looping = [lane for lane, state in self._states.items() if state is LaneState.CRASH_LOOPING]
        if start is StartStage.READY and self._told_start is None:
            self._say(f"ready in {time.monotonic() - self._begun_s:.1f} s; paste one of these, then open the .mp4:")
        elif start is StartStage.READY:
            self._say("ready: every part runs now")
        else:
            self._say(
                f"[yellow]serves after {time.monotonic() - self._begun_s:.1f} s[/], but [red]"
                f"{escape(', '.join([*failing, *looping]))} ends again and again[/]; paste one of these:"
            )
        if self._told_start is None:
            self._tell_curl()
        self._told_start = start

    def _on_leader(self, entry: Versioned[Leadership]) -> None:
        if self._draining:
            return
        if entry.is_deleted:
            if self._leader is not None:
                self._leader = None
                self._say("[yellow]no degraded worker leads[/]: what has no lane waits")
            return
        leadership = entry.value
        if leadership is None:
            return
        if leadership.since < self._begun_at or self._leader == leadership.owner:
            return  # of an earlier run; or a refresh
        self._leader = leadership.owner
        self._led.set()
        self._say(f"degraded worker {leadership.worker} [green]leads[/]")
        self._tell_when_ready()

    def _tell_curl(self) -> None:
        models = [model for model, count in self._lanes.items() if count] or list(self._catalog.models)
        for model, prompt in zip(models, PROMPTS * len(models), strict=False):
            entry = self._catalog.models[model]
            if entry.constraints.image.presence == "required" or entry.timeouts.total_s > CURL_WAITS_FOR_S:
                lines = self._submit_line(entry, prompt)
            else:
                lines = curl_lines(self.url, model, prompt, needs_key=self._needs_key)
            self._console.print(lines, markup=False, highlight=False, soft_wrap=True)
        self._say(f"or: {self._command('demo')}   ·   Ctrl-C stops everything")

    def _submit_line(self, entry: ModelEntry, prompt: str) -> str:
        """One line that waits as long as it takes, with a place for the picture where the model needs one."""
        picture = ["--image", PICTURE] if entry.constraints.image.presence == "required" else []
        return f"  {self._command('submit', entry.name, prompt, *picture, '--out', f'{entry.name}.mp4')}"

    def _command(self, *words: str) -> str:
        program, *rest = warmlane_command(*words, *([] if self.url == DEFAULT_URL else ["--url", self.url]))
        return shlex.join([os.path.relpath(program), *rest])

    def _on_death(self, process: Process, status: int, wait_s: float) -> None:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        self._say(f"[red]{process.name} ended[/] ({how}); again in {wait_s:g} s. Why: {process.log_file}")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def _process(
        self, name: str, command: list[str], *, secrets: Mapping[str, str] | None = None, inherits: Sequence[int] = ()
    ) -> Process:
        # each takes its password from its own file: what the environment holds is another server's
        # one port for metrics cannot be that of every worker: the gateway's page has them all
        inherited = {variable: os.environ[variable] for variable in os.environ.keys() - set(METRICS_LISTEN)}
        environment = environment_for(None, inherited) | dict(secrets or {}) | {METRICS_FOLDER: str(self._metrics)}
        if self._shares_forks:
            environment[SHARED_FORK_SERVER] = str(self._forks)
        log_file = self._log_file(name)
        return Process(
            name,
            command,
            log_file=log_file,
            on_death=self._on_death,
            env=environment,
            inherits=inherits,
            log_max_bytes=self._log_max_bytes,
        )

    def _log_file(self, name: str) -> Path:
        return self._data_dir / "logs" / f"{name}.log"

    @property
    def _lanes_argument(self) -> str:
        return ",".join(f"{model}={count}" for model, count in self._lanes.items())

    def _gateway_arguments(self) -> Iterator[str]:
        yield from ("--host", self._host.address, "--port", str(self._port), "--keep", f"{self._keep_s:g}s")
        yield from ("--lanes", self._lanes_argument)
        for origin in self._cors_origins:
            yield from ("--cors-origin", origin)
        yield from self._behind.arguments()
        if self._tls is not None:
            yield from self._tls.arguments()
        yield from self._shared.arguments()

    def _supervisor_arguments(self) -> Iterator[str]:
        yield from ("--log-size", f"{self._log_max_bytes / 1024:g}KB")
        yield from ("--lanes", self._lanes_argument)
        if self._gpus is not None:
            yield from ("--gpus", str(self._gpus))
        if self._quota_file is not None:
            yield from ("--quota", str(self._quota_file))
        yield from (*slowed(self._step_seconds), *snapshotting(self._oom_snapshots), *self._shared.arguments())

    def _degraded_arguments(self, name: str, slot: str) -> Iterator[str]:
        yield from ("--name", name, "--slot", slot)
        yield from (*slowed(self._step_seconds), *snapshotting(self._oom_snapshots), *self._shared.arguments())


def curl_lines(url: str, model: str, prompt: str, *, needs_key: bool = False) -> str:
    """Two lines for a shell: submit, then wait and download; with *needs_key* they send what is in WARMLANE_API_KEY."""
    key = ' -H "Authorization: Bearer $WARMLANE_API_KEY"' if needs_key else ""
    body = msgspec.json.encode({"model": model, "prompt": prompt}).decode()
    return (
        f"""  id=$(curl -s{key} {url}/generate -H 'Content-Type: application/json' -d '{body}' | cut -d'"' -f4)\n"""
        f"""  curl -s{key} "{url}/tasks/$id?wait=60"; echo; curl{key} -so {model}.mp4 "{url}/tasks/$id/video" """
    ).rstrip()


@click.command(
    epilog="Examples:\n\n  warmlane up\n\n  warmlane up --port 8080 --nats-port 4333 --lanes anisora=2,phr00t=1\n\n"
    "  warmlane up --lanes anisora=0,phr00t=0 --standbys 1   (degraded mode only)\n\n"
    "  warmlane up --gpus 2   (two slots: one lane is denied, and the degraded worker serves its requests)\n\n"
    "  warmlane up --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem   (after `warmlane keys add`)\n\n"
    "  warmlane up --step-seconds 1   (tiny pipelines as slow as a real card)"
)
@host_option
@port_option
@nats_port_option
@data_dir_option
@lanes_option
@gpus_option
@quota_option
@click.option(
    "--standbys",
    envvar="WARMLANE_STANDBYS",
    type=click.IntRange(0, 8),
    default=0,
    show_default=True,
    show_envvar=True,
    help="Hot standbys of the degraded worker: one takes over when it dies.",
)
@settings_option
@profile_option
@log_size_option
@step_seconds_option
@oom_snapshots_option
@keep_option
@cors_origins_option
@behind_options
@tls_cert_option
@tls_key_option
def command(
    host: ListenHost,
    port: int,
    nats_port: int,
    data_dir: Path,
    lanes: dict[str, int] | None,
    gpus: int | None,
    quota: Path | None,
    standbys: int,
    settings: Path | None,
    profile: str,
    log_max_bytes: int,
    step_seconds: float,
    oom_snapshots: int,
    keep_s: float,
    cors_origins: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    behind: Behind,
) -> None:
    """Run the whole system on this machine: nats-server, gateway, warm lanes and degraded worker, on loopback.

    On another --host it starts when there is an API key.

    It goes on until Ctrl-C, which drains: tasks in hand are finished, nothing is left running.
    """
    require_distinct({"--port": port, "--nats-port": nats_port})
    tls = tls_of(tls_cert, tls_key)
    configure_logging("up", level="warning")
    # a terminal or a disk that takes no text ends nothing
    console = Console(file=cast(IO[str], SafeText(sys.stdout)))
    try:
        catalog = load_settings(settings).catalog(profile)
        find_nats_server()
    except (SettingsError, NoNatsServer) as error:
        raise click.ClickException(str(error)) from error
    require_kept_long_enough(keep_s, catalog.windows)
    data_dir = data_dir.absolute()
    with only_one(data_dir, "up"), holding_store(data_dir, "up", nats_port=nats_port, port=port) as store_lock:
        require_free(host.address, port, option="--port")
        require_free(NATS_HOST, nats_port, option="--nats-port")
        try:
            stack = Stack(
                console=console,
                catalog=catalog,
                host=host,
                port=port,
                tls=tls,
                cors_origins=cors_origins,
                behind=behind,
                nats_port=nats_port,
                data_dir=data_dir,
                lanes=wanted_lanes(lanes, catalog),
                gpus=gpus,
                quota_file=quota.absolute() if quota else None,
                standbys=standbys,
                settings=settings.absolute() if settings else None,
                keep_s=keep_s,
                log_max_bytes=log_max_bytes,
                step_seconds=step_seconds,
                oom_snapshots=oom_snapshots,
                store_lock=store_lock,
            )
        except QuotaError as error:
            raise click.ClickException(str(error)) from error

        async def run() -> None:
            with asked_to_end() as (stop, hurry), telling(data_dir, stack.addresses):
                await stack.run(stop, hurry)

        try:
            asyncio.run(run())
        except* (TransportUnavailable, UnusableServer, NotProvisioned, NoKeys) as group:
            raise click.ClickException(str(group.exceptions[0])) from group
