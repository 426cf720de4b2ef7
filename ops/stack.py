"""`warmlane up`: the whole system on one machine, on loopback."""

import asyncio
import contextlib
import fcntl
import os
import shlex
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console

from contracts.lanes import LaneHeartbeat, LaneState
from contracts.settings import Catalog, SettingsError, load_settings
from contracts.topology import LANES
from ops.ending import end
from ops.memory import DriverUnusable, list_gpus
from ops.nats_link import Entry, NatsLink, TransportUnavailable, UnusableServer
from ops.nats_server import NoNatsServer, find_nats_server, nats_conf
from ops.options import (
    Lanes,
    data_dir_option,
    host_option,
    keep_option,
    nats_port_option,
    port_option,
    profile_option,
    settings_option,
    step_seconds_option,
)
from ops.processes import Process, warmlane_command
from ops.provision import provision, wanted
from ops.telemetry import configure_logging

NATS_HOST: Final = "127.0.0.1"
STOP_S: Final = 10.0
DEFAULT_PORT: Final = 8000
# Beyond the lanes' own bound on a drain, they are killed.
DRAIN_EXTRA_S: Final = 10.0
PROMPTS: Final = ("a red fox in fresh snow", "a paper boat on a quiet lake", "a lantern in the rain")


class Stack:
    """The processes of one `warmlane up`."""

    def __init__(
        self,
        *,
        console: Console,
        catalog: Catalog,
        host: str,
        port: int,
        nats_port: int,
        data_dir: Path,
        lanes: Mapping[str, int],
        settings: Path | None,
        keep_s: float,
        step_seconds: float,
    ) -> None:
        self._console = console
        self._catalog = catalog
        self._host, self._port = host, port
        self._nats_port = nats_port
        self._data_dir = data_dir
        self._lanes = lanes
        self._settings = settings
        self._keep_s = keep_s
        self._step_seconds = step_seconds
        self._warm: dict[str, LaneState] = {}
        self._told_curl = False
        self._begun_s = time.monotonic()
        self._begun_at = datetime.now(UTC)

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def _nats_url(self) -> str:
        return f"nats://{NATS_HOST}:{self._nats_port}"

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Starts everything and keeps it running until *stop*, then drains; *hurry* kills what still drains."""
        server = self._process("nats-server", self._nats_command())
        gateway = self._process("gateway", warmlane_command("gateway", *self._gateway_arguments()))
        lanes = [
            self._process(name, warmlane_command("lane", *self._lane_arguments(model, name, slot)))
            for model, name, slot in place(self._lanes, self._catalog.profile)
        ]
        async with asyncio.TaskGroup() as group:
            group.create_task(server.run())
            try:
                link = await NatsLink.connect(self._nats_url, name="up")
                try:
                    await provision(link, wanted(self._catalog, keep_s=self._keep_s))
                    for process in (gateway, *lanes):
                        group.create_task(process.run())
                    await link.watch(LANES, self._on_lane)
                    await self._serve(stop)
                    await self._drain(gateway, lanes, hurry)
                finally:
                    await link.close()
            finally:
                for process in (gateway, *lanes):
                    process.kill()
                await server.stop(within_s=STOP_S)

    async def _serve(self, stop: asyncio.Event) -> None:
        answering = asyncio.create_task(self._tell_when_answering())
        await stop.wait()
        await end(answering)

    async def _tell_when_answering(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(self._host, self._port)
                writer.close()
                break
            await asyncio.sleep(0.05)
        self._say(f"[bold]{self.url}[/]  ·  docs {self.url}/docs  ·  logs {self._data_dir / 'logs'}")
        if not any(self._lanes.values()):
            self._say("no lanes were asked for: every request gets 503 no_lane")

    async def _drain(self, gateway: Process, lanes: list[Process], hurry: asyncio.Event) -> None:
        self._say("draining: the tasks in hand are finished (Ctrl-C again stops at once)")
        within_s = self._catalog.windows.drain_s + DRAIN_EXTRA_S

        async def kill_in_a_hurry() -> None:
            await hurry.wait()
            for process in (gateway, *lanes):
                process.kill()

        hurrying = asyncio.create_task(kill_in_a_hurry())
        await asyncio.gather(gateway.stop(within_s=STOP_S), *(lane.stop(within_s=within_s) for lane in lanes))
        await end(hurrying)
        self._say("stopped")

    def _on_lane(self, entry: Entry) -> None:
        if entry.value is None:
            return
        try:
            lane = msgspec.json.decode(entry.value, type=LaneHeartbeat)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if lane.started_at < self._begun_at:
            return  # what an earlier run left in the bucket
        # busy lanes are warm ones: only what changes for a caller is told
        state = LaneState.WARM if lane.state is LaneState.BUSY else lane.state
        if self._warm.get(lane.worker) is state:
            return
        self._warm[lane.worker] = state
        colour = "green" if state is LaneState.WARM else "yellow"
        after = f" after {lane.warm_after_s:.1f} s" if state is LaneState.WARM and lane.warm_after_s else ""
        detail = f": {lane.detail}" if lane.detail else ""
        self._say(f"lane {lane.worker} is [{colour}]{state.value}[/]{after}{detail}")
        wanted_lanes = sum(self._lanes.values())
        if not self._told_curl and list(self._warm.values()).count(LaneState.WARM) == wanted_lanes:
            self._told_curl = True
            self._tell_curl()

    def _tell_curl(self) -> None:
        models = [model for model, count in self._lanes.items() if count]
        self._say(f"ready in {time.monotonic() - self._begun_s:.1f} s; paste one of these, then open the .mp4:")
        for model, prompt in zip(models, PROMPTS * len(models), strict=False):
            self._console.print(curl_lines(self.url, model, prompt), markup=False, highlight=False, soft_wrap=True)
        program, *rest = warmlane_command("demo", *([] if self._port == DEFAULT_PORT else ["--url", self.url]))
        self._say(f"or: {shlex.join([os.path.relpath(program), *rest])}   ·   Ctrl-C stops everything")

    def _on_death(self, process: Process, status: int, wait_s: float) -> None:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        self._say(f"[red]{process.name} ended[/] ({how}); again in {wait_s:g} s. Why: {process.log_file}")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def _process(self, name: str, command: list[str]) -> Process:
        return Process(name, command, log_file=self._data_dir / "logs" / f"{name}.log", on_death=self._on_death)

    def _nats_command(self) -> list[str]:
        store = self._data_dir / "nats"
        store.mkdir(parents=True, exist_ok=True)
        arguments = ["-c", str(nats_conf()), "-a", NATS_HOST, "-p", str(self._nats_port), "-sd", str(store)]
        return [str(find_nats_server()), *arguments]

    def _gateway_arguments(self) -> Iterator[str]:
        yield from ("--host", self._host, "--port", str(self._port), "--keep", f"{self._keep_s:g}s")
        yield from self._shared_arguments()

    def _lane_arguments(self, model: str, name: str, slot: str) -> Iterator[str]:
        yield from ("--model", model, "--name", name, "--slot", slot)
        if self._step_seconds:
            yield from ("--step-seconds", f"{self._step_seconds:g}")
        yield from self._shared_arguments()

    def _shared_arguments(self) -> Iterator[str]:
        yield from ("--nats-url", self._nats_url, "--data-dir", str(self._data_dir))
        yield from ("--profile", self._catalog.profile)
        if self._settings is not None:
            yield from ("--settings", str(self._settings))


def place(lanes: Mapping[str, int], profile: str) -> list[tuple[str, str, str]]:
    """Model, worker name and slot of every lane: tiny pipelines on CPU slots, real ones on a card each.

    Raises click.ClickException when there are fewer cards than lanes.
    """
    names = [(model, f"{model}-{number}") for model, count in lanes.items() for number in range(count)]
    if profile == "tiny":
        slots = [f"cpu-{index}" for index in range(len(names))]
    else:
        try:
            slots = [gpu.uuid for gpu in list_gpus()]
        except DriverUnusable as error:
            raise click.ClickException(str(error)) from error
        if len(slots) < len(names):
            raise click.ClickException(
                f"{len(names)} lanes need a card each, and this machine has {len(slots)}; "
                "ask for fewer with --lanes, or use --profile tiny"
            )
    return [(model, name, slot) for (model, name), slot in zip(names, slots, strict=False)]


def curl_lines(url: str, model: str, prompt: str) -> str:
    """Two lines for a shell: submit, then wait and download."""
    body = msgspec.json.encode({"model": model, "prompt": prompt}).decode()
    return (
        f"""  id=$(curl -s {url}/generate -H 'Content-Type: application/json' -d '{body}' | cut -d'"' -f4)\n"""
        f"""  curl -s "{url}/tasks/$id?wait=60"; echo; curl -so {model}.mp4 "{url}/tasks/$id/video" """
    ).rstrip()


def require_free(host: str, port: int, option: str) -> None:
    """Raises click.ClickException when something listens on *port* already."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            return
    except OSError as error:
        raise click.ClickException(
            f"port {port} on {host} is taken ({error.strerror}); choose another with {option}, "
            "or stop what listens there"
        ) from error


@contextlib.contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Holds the data folder's lock. Raises click.ClickException when another `warmlane up` has it."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "up.lock").open("a")
    except OSError as error:
        raise click.ClickException(f"cannot use --data-dir {data_dir}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise click.ClickException(
                f"another `warmlane up` uses {data_dir}; stop it, or choose another folder with --data-dir"
            ) from error
        yield


def _checked_lanes(lanes: Mapping[str, int] | None, catalog: Catalog) -> dict[str, int]:
    if lanes is None:
        return dict.fromkeys(catalog.models, 1)
    unknown = [model for model in lanes if model not in catalog.models]
    if unknown:
        raise click.ClickException(
            f"--lanes: no model is called {', '.join(unknown)}; there are {', '.join(catalog.models)}"
        )
    return dict(lanes)


@contextlib.asynccontextmanager
async def _signals() -> AsyncIterator[tuple[asyncio.Event, asyncio.Event]]:
    """Two events: the first Ctrl-C or SIGTERM, and the second."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop, hurry
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@click.command(
    epilog="Examples:\n\n  warmlane up\n\n  warmlane up --port 8080 --nats-port 4333 --lanes anisora=2,phr00t=1\n\n"
    "  warmlane up --step-seconds 1   (tiny pipelines as slow as a real card)"
)
@host_option
@port_option
@nats_port_option
@data_dir_option
@click.option(
    "--lanes",
    envvar="WARMLANE_LANES",
    type=Lanes(),
    show_envvar=True,
    help="Warm lanes per model, as in anisora=1,phr00t=1. [default: one of each]",
)
@settings_option
@profile_option
@step_seconds_option
@keep_option
def command(
    host: str,
    port: int,
    nats_port: int,
    data_dir: Path,
    lanes: dict[str, int] | None,
    settings: Path | None,
    profile: str,
    step_seconds: float,
    keep_s: float,
) -> None:
    """Run the whole system on this machine: nats-server, gateway, and warm lanes, on loopback.

    It goes on until Ctrl-C, which drains: tasks in hand are finished, nothing is left running.
    """
    configure_logging("up", level="warning")
    console = Console()
    try:
        catalog = load_settings(settings).catalog(profile)
        wanted_lanes = _checked_lanes(lanes, catalog)
        find_nats_server()
    except (SettingsError, NoNatsServer) as error:
        raise click.ClickException(str(error)) from error
    data_dir = data_dir.absolute()
    with only_one(data_dir):
        require_free(host, port, "--port")
        require_free(NATS_HOST, nats_port, "--nats-port")
        stack = Stack(
            console=console,
            catalog=catalog,
            host=host,
            port=port,
            nats_port=nats_port,
            data_dir=data_dir,
            lanes=wanted_lanes,
            settings=settings.absolute() if settings else None,
            keep_s=keep_s,
            step_seconds=step_seconds,
        )

        async def run() -> None:
            async with _signals() as (stop, hurry):
                await stack.run(stop, hurry)

        try:
            asyncio.run(run())
        except* (TransportUnavailable, UnusableServer) as group:
            raise click.ClickException(str(group.exceptions[0])) from group
