"""The processes of a whole system, each of which can be killed, stopped, continued and started again."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import httpx
import nats.js.errors
from msgspec import Struct
from msgspec.structs import replace

from contracts.settings import Catalog, load_settings
from contracts.topology import DEGRADED, TASKS, bucket_stream, lane_stream
from ops.machine.processes import warmlane_command
from ops.nats.errors import translated
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from ops.nats.refusals import learn_refusals
from ops.nats.server import find_nats_server, nats_conf
from ops.nats.store_keeper import StoreKeeper
from ops.nats.write_health import Refusals
from tests.faults.store import Store
from tests.kit.behind import js_of
from tests.kit.small_disk import SmallDisk, mount, unmount
from tests.kit.support import NO_TLS, as_admin, clean_environment, command_line, eventually, free_port, is_running

LANES: Final = ("anisora", "phr00t")
# A model without a lane: its requests are the steady load of the degraded worker.
LANELESS: Final = "sketch"
GATEWAYS: Final = ("gateway-a", "gateway-b")
DEGRADED_WORKERS: Final = ("degraded-0", "degraded-1")
DEGRADED_SLOT: Final = f"cpu-{len(LANES)}"
SLOTS: Final = ("cpu-0", "cpu-1", DEGRADED_SLOT)
KEEP: Final = "1h"
WEBHOOKS: Final = ("--webhooks-allow", "127.0.0.0/8")
WATCHED_HISTORY: Final = 16
# Room for some 8,000 tasks with all their revisions.
NATS_DISK_MIB: Final = 256
STEP_SECONDS: Final = "0.03"
WATCH_S: Final = 0.3
# The fleet restarts a process that ended by itself after this time, as any service manager would.
REVIVE_S: Final = 1.0
WINDOWS: Final = {
    "wait_limit_s": 6.0,
    "degraded_margin_s": 0.5,
    "lease_s": 3.0,
    "lease_renew_s": 1.0,
    "heartbeat_s": 1.0,
    "health_timeout_s": 6.0,
    "reconnect_grace_s": 1.0,
    "drain_s": 20.0,
}


class Size(Struct, frozen=True):
    """A generation as small as the code allows: one frame, two steps."""

    pixels: int = 32
    frames: int = 1
    steps: int = 2


def small_settings(folder: Path) -> Path:
    """The packaged settings with short windows and tiny generations, and a third model, which needs no lane."""
    size = Size()
    settings: dict[str, Any] = json.loads(
        resources.files("contracts").joinpath("inference_settings.json").read_text(encoding="utf-8")
    )
    settings["windows"] |= WINDOWS
    for model in settings["models"].values():
        model["generation"]["steps"] = {"fixed": size.steps}
        geometry = model["profiles"]["tiny"]["geometry"]
        geometry["num_frames"] |= {"default": size.frames, "minimum": size.frames}
        for side in ("width", "height"):
            geometry[side] |= {"default": size.pixels, "minimum": size.pixels}
    settings["models"][LANELESS] = settings["models"]["phr00t"] | {"title": "Sketch", "aliases": []}
    path = folder / "settings.json"
    path.write_text(json.dumps(settings))
    return path


class Member:
    """One process, which the fleet restarts whenever it ends by itself, until a fault kills or stops it."""

    def __init__(self, name: str, command: list[str], log_file: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._environment = environment
        self._command = command
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._ended_s: float | None = None
        self.ended_by_itself = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Starts it, unless it runs."""
        self._wanted, self._ended_s = True, None
        if self.pid is None:
            with self._log_file.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=clean_environment() | dict(self._environment),
                )

    def look(self, now_s: float) -> None:
        """Restarts it some time after it ended by itself."""
        if not self._wanted or self.pid is not None:
            return
        if self._ended_s is None:
            self._ended_s = now_s
            self.ended_by_itself += 1
        elif now_s - self._ended_s >= REVIVE_S:
            self.start()

    def kill(self) -> None:
        """kill -9; it stays down until `start`."""
        self._wanted = False
        self.signal(signal.SIGKILL)

    def ask_to_end(self) -> None:
        """SIGTERM; it stays down until `start`."""
        self._wanted = False
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        if self.pid is not None and self._process is not None:
            self._process.send_signal(number)

    async def ended(self, *, within_s: float) -> None:
        """Returns when it is gone; kills it after *within_s*."""
        deadline_s = time.monotonic() + within_s
        while self.pid is not None:
            if time.monotonic() > deadline_s:
                self.kill()
            await asyncio.sleep(0.02)


class Fleet:
    """nats-server, two gateways, a supervisor with one lane for each of two models, a degraded worker and a standby."""

    def __init__(self, folder: Path, *, plant: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Every Warmlane process has the bug *plant* of `tests.faults.planted`, if there is one, and *environment*."""
        # the size of the disk below, of which a tenth is kept back
        self._environment = {"WARMLANE_NATS_STORAGE": f"{NATS_DISK_MIB}MB"} | dict(environment or {})
        self.data_dir = folder / "data"
        nats_store = self.data_dir / "nats"
        self.nats_disk = SmallDisk(nats_store) if mount(nats_store, mib=NATS_DISK_MIB) else None
        """The disk on which nats-server stores; None where no file system of its own can be mounted."""
        self.refusals = Refusals()
        self._logs = self.data_dir / "logs"
        self._logs.mkdir()
        self._plant = plant
        self.settings = small_settings(folder)
        self.catalog: Catalog = load_settings(self.settings).catalog("tiny")
        self.store = Store(self.data_dir / "artifacts")
        nats_port = free_port()
        self._nats_address = f"nats://127.0.0.1:{nats_port}"
        self.nats_url = as_admin(self._nats_address)
        self.urls = {name: f"http://127.0.0.1:{free_port()}" for name in GATEWAYS}
        self.streams = (*(lane_stream(model) for model in self.catalog.models), DEGRADED)
        self.nats = self._member("nats", self._nats_command(nats_port))
        self.members = {self.nats.name: self.nats}
        for name, url in self.urls.items():
            self._add(name, "gateway", "--port", url.rsplit(":", 1)[1], "--keep", KEEP, "--displace", *WEBHOOKS)
        lanes = ",".join(f"{model}={int(model in LANES)}" for model in self.catalog.models)
        self._add("supervisor", "supervisor", "--lanes", lanes, "--step-seconds", STEP_SECONDS)
        for name in DEGRADED_WORKERS:
            self._add(name, "degraded", "--name", name, "--slot", DEGRADED_SLOT, "--step-seconds", STEP_SECONDS)

    async def start(self) -> None:
        """Starts everything; returns when all lanes are warm and a degraded worker leads."""
        self.nats.start()
        await eventually(self._nats_answers)
        link = await NatsLink.connect(self.nats_url, name="chaos-provision")
        await provision(link, wanted(self.catalog, keep_s=3_600))
        await _keep_history(link)
        await link.close()
        for member in self.members.values():
            member.start()
        await eventually(self.is_ready, within_s=120)

    @property
    def nats_store(self) -> Path:
        """Where nats-server keeps what it stores."""
        return self.data_dir / "nats" / "jetstream"

    async def recreate(self, bucket: str) -> None:
        """`nats stream rm KV_…` and `warmlane provision`. After TransportUnavailable the bucket may be missing."""
        link = await NatsLink.connect(self.nats_url, name="chaos-recreate")
        try:
            with translated(bucket), contextlib.suppress(nats.js.errors.NotFoundError):
                await js_of(link).delete_stream(bucket_stream(bucket))
            full = wanted(self.catalog, keep_s=3_600)
            only = tuple(spec for spec in full.buckets if spec.name == bucket)
            await provision(link, replace(full, streams=(), buckets=only))
        finally:
            await link.close()

    async def keep(self) -> None:
        """Restarts members that ended by themselves, until cancelled."""
        while True:
            for member in self.members.values():
                member.look(time.monotonic())
            await asyncio.sleep(WATCH_S)

    async def is_ready(self) -> bool:
        """Whether both gateways report that all lanes are warm, and that they are ready for the model without one."""
        async with httpx.AsyncClient(timeout=5, verify=NO_TLS) as http:
            for url in self.urls.values():
                try:
                    ready = (await http.get(f"{url}/readyz")).json()
                except (httpx.TransportError, ValueError):
                    return False
                if not ready["ready"] or not all(ready["models"][model]["warm"] for model in LANES):
                    return False
        return True

    async def keep_store(self) -> None:
        """Keeps the server's store as `warmlane up` does for its own server, until cancelled."""
        link = await NatsLink.connect(self.nats_url, name="chaos-keeper")
        try:
            await learn_refusals(link, self.refusals)
            await StoreKeeper(link, self.data_dir / "nats", self._restart_nats, lambda _: None).run()
        finally:
            await link.close()

    async def _restart_nats(self) -> None:
        if self.nats.pid is not None:  # else another fault has it down just now
            self.nats.ask_to_end()
            await self.nats.ended(within_s=10)
            self.nats.start()

    def lane_pids(self, model: str) -> list[int]:
        """The processes of the lane of *model*, the newest last: an old one may be draining."""
        sought = (f"--name {model}-0", str(self.data_dir), " lane ")
        found = [pid for pid in _pids() if all(word in command_line(pid) for word in sought)]
        return sorted(found, key=_started)

    async def stop(self) -> None:
        """Drains and ends everything, the server last."""
        for member in reversed(self.members.values()):
            if member is not self.nats:
                member.signal(signal.SIGCONT)
                member.ask_to_end()
        for member in self.members.values():
            if member is not self.nats:
                await member.ended(within_s=60)

    async def close(self) -> None:
        """Ends whatever still runs."""
        lanes = [pid for model in LANES for pid in self.lane_pids(model)]
        for member in self.members.values():
            member.signal(signal.SIGCONT)
            member.kill()
            await member.ended(within_s=10)
        for pid in lanes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.store.close()
        if self.nats_disk is not None:
            unmount(self.nats_disk.folder)

    def log_events(self, *events: str) -> Iterator[dict[str, Any]]:
        """What gateways and workers logged as one of *events*, a dict a line."""
        for path in self._logs.glob("*.log"):
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("{") and any(event in line for event in events):
                    with contextlib.suppress(ValueError):
                        entry = json.loads(line)
                        if entry.get("event") in events:
                            yield entry

    def _add(self, name: str, *arguments: str) -> None:
        shared = ["--nats-url", self._nats_address, "--data-dir", str(self.data_dir), "--settings", str(self.settings)]
        prefix = warmlane_command() if self._plant is None else planted_command(self._plant)
        self.members[name] = self._member(name, [*prefix, *arguments, *shared])

    def _member(self, name: str, command: list[str]) -> Member:
        return Member(name, command, self._logs / f"{name}.log", self._environment)

    def _nats_command(self, port: int) -> list[str]:
        store = str(self.data_dir / "nats")
        return [str(find_nats_server()), "-c", str(nats_conf()), "-a", "127.0.0.1", "-p", str(port), "-sd", store]

    async def _nats_answers(self) -> bool:
        port = int(self._nats_address.rsplit(":", 1)[1])
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            return connection.recv(4) == b"INFO"
        return False


async def _keep_history(link: NatsLink) -> None:
    """Keeps more revisions than production, so that the watcher sees each of them, even after it was cut off."""
    config = (await js_of(link).stream_info(bucket_stream(TASKS))).config
    await js_of(link).update_stream(config.evolve(max_msgs_per_subject=WATCHED_HISTORY))


def planted_command(plant: str) -> list[str]:
    """`warmlane` with a bug; the rest of the command line follows."""
    return [sys.executable, "-m", "tests.faults.planted", plant]


def send(pid: int | None, number: signal.Signals) -> None:
    """Sends a signal to a process that may be gone."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit() and is_running(int(entry.name))]


def _started(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0
