"""What is measured, each with its broker in a fresh folder: Warmlane, the bare limit, and the peers."""

import contextlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from contracts.lanes import LaneHeartbeat, LaneState
from contracts.settings import load_settings
from contracts.topology import LANES
from ops.machine.processes import warmlane_command
from ops.nats.access import ROLES, Role, password_variable
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from ops.nats.server import find_nats_server, nats_conf
from tests.bench.load import Address, request
from tests.bench.names import BARE, CELERY, TASKIQ, TASKIQ_KV, UVICORN, WARMLANE
from tests.bench.procs import HOST, Cores, Script, Server, listens, script, server
from tests.kit.support import NO_TLS, free_port

MODEL: Final = "phr00t"
LANE: Final = f"{MODEL}-0"
# The smallest video that the settings allow: the inference is not what is measured.
BODY: Final = msgspec.json.encode({"model": MODEL, "prompt": "a red fox in fresh snow", "seed": 7})
SMALL_BODY: Final = msgspec.json.encode(
    {"model": MODEL, "prompt": "a red fox in fresh snow", "seed": 7, "width": 32, "height": 32, "num_frames": 5}
)
KEEP_S: Final = 3_600.0
# While accepting is measured, no lane takes tasks off its queue, so the queue has to hold all of them.
QUEUE_MAX_MSGS: Final = 10_000_000
_PASSWORDS: Final[Mapping[Role, str]] = {role: f"bench-{role}" for role in ROLES}
_REDIS_OPTIONS: Final = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--bind", HOST)


class Stack(Struct, frozen=True, kw_only=True):
    """A running service. *served* are its processes; *brokers* are the processes in which it stores."""

    address: Address
    served: tuple[Server, ...]
    brokers: tuple[Server, ...]
    folder: Path
    link: NatsLink | None = None

    def post(self, body: bytes = BODY) -> bytes:
        """The request that submits a task."""
        return request("POST", "/generate", self.address, body, content_type="application/json")

    def require_running(self) -> None:
        """Raises NotStarted when one of its processes has ended."""
        for process in (*self.served, *self.brokers):
            process.require_running()


class Given(Struct, frozen=True, kw_only=True):
    """What a contender gets at its start: an empty *folder*, the cores, whether workers run as well, and the *record*
    whose bytes the bare limit stores."""

    folder: Path
    cores: Cores
    works: bool = False
    record: bytes = b""


class Contender(Struct, frozen=True, kw_only=True):
    """Something to measure. *durability* says what is stored, and how, when its answer is sent.

    *absent* is why it cannot run here; None when it can.
    """

    name: str
    durability: str
    absent: str | None
    start: Callable[[Given], AbstractAsyncContextManager[Stack]]


def contenders() -> tuple[Contender, ...]:
    """All contenders: Warmlane, the bare limit, the peers."""
    nats = "JetStream file streams, synced to disk every 2 minutes (nats-server's default)"
    redis = "Redis append-only file, synced to disk every second (`appendonly yes`, `appendfsync everysec`)"
    return (
        Contender(
            name=WARMLANE,
            durability=f"message and record, each acked: {nats}",
            absent=None,
            start=lambda given: warmlane(given.folder, given.cores, works=given.works),
        ),
        Contender(
            name=BARE,
            durability=f"message and record, each acked: {nats}",
            absent=None,
            start=lambda given: bare(given.folder, given.cores, given.record),
        ),
        Contender(
            name=CELERY,
            durability=f"the message alone: {redis}; tasks acked late, no result backend",
            absent=lacks("celery", "redis", "fastapi") or _lacks_redis(),
            start=lambda given: celery(given.folder, given.cores, works=given.works),
        ),
        Contender(
            name=TASKIQ,
            durability=f"the message alone, acked: {nats}; no record, nothing to ask for",
            absent=lacks("taskiq", "taskiq_nats", "fastapi"),
            start=lambda given: taskiq(given.folder, given.cores, works=given.works),
        ),
        Contender(
            name=TASKIQ_KV,
            durability=f"message and record, each acked: {nats}; the record can be asked for by its id",
            absent=lacks("taskiq", "taskiq_nats", "fastapi"),
            start=lambda given: taskiq(given.folder, given.cores, app="taskiq_kv_app", works=given.works),
        ),
    )


def lacks(*modules: str) -> str | None:
    """Why a contender cannot run here, because one of *modules* is not installed; None when all are."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return f"not installed: {', '.join(missing)}; pip install -c constraints.txt -e '.[bench]' brings it"


def _lacks_redis() -> str | None:
    if shutil.which("redis-server"):
        return None
    return "there is no redis-server on PATH; apt-get install redis-server brings one on Debian"


@contextlib.asynccontextmanager
async def warmlane(folder: Path, cores: Cores, *, works: bool = False) -> AsyncIterator[Stack]:
    """One gateway, and a warm lane: a real one where it *works*, otherwise one that only a heartbeat reports."""
    async with _gateway(folder, cores) as (stack, worker):
        assert stack.link is not None
        if not works:
            await say_warm(stack.link)
            yield stack
            return
        lane = ("lane", "--model", MODEL, "--name", LANE, "--slot", "cpu-0")
        with worker(lane, lambda ready: bool(ready["models"][MODEL]["warm"])) as served:
            yield replace(stack, served=(*stack.served, served))


@contextlib.asynccontextmanager
async def degraded(
    folder: Path,
    cores: Cores,
    *,
    step_seconds: float = 0.0,
    settings: Path | None = None,
    models_dir: Path | None = None,
    forks: Mapping[str, str] | None = None,
) -> AsyncIterator[Stack]:
    """One gateway without lanes, and the degraded worker, whose inference steps take *step_seconds* longer.

    The worker has the checkpoints of *models_dir*; without that, tiny ones of its own. *forks* are variables that name
    a fork server. Without them the worker has one of its own, whose memory and import count as the worker's.
    """
    if models_dir is not None:
        (folder / "models").symlink_to(models_dir, target_is_directory=True)
    async with _gateway(folder, cores, settings, forks) as (stack, worker):
        command = ("degraded", "--slot", "cpu-0", "--step-seconds", f"{step_seconds:g}")
        with worker(command, lambda ready: bool(ready["degraded_worker"])) as served:
            yield replace(stack, served=(*stack.served, served))


_Worker = Callable[[Sequence[str], Callable[[dict[str, Any]], bool]], contextlib.AbstractContextManager[Server]]


@contextlib.asynccontextmanager
async def _gateway(
    folder: Path, cores: Cores, settings: Path | None = None, forks: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Stack, _Worker]]:
    """A gateway, and a function that starts one of its workers from the words of a command and a check of `/readyz`."""
    settings = settings or _settings(folder)
    port = free_port()
    with nats(folder, cores) as broker:
        async with linked(broker.url) as link:
            await provision(link, wanted(load_settings(settings).catalog("tiny"), keep_s=KEEP_S))
            shared = ["--nats-url", broker.address, "--data-dir", str(folder), "--settings", str(settings)]

            def process(
                command: Sequence[str], holds: Callable[[dict[str, Any]], bool]
            ) -> contextlib.AbstractContextManager[Server]:
                return server(
                    command[0],
                    warmlane_command(*command, *shared),
                    folder=folder,
                    cores=cores.served if command[0] == "gateway" else cores.rest,
                    is_ready=lambda: _answers(port, holds),
                    env=environment(**(forks or {})),
                )

            gateway = ("gateway", "--port", str(port), "--keep", f"{KEEP_S:g}s")
            # until the gateway has all that it needs to begin, it reports that it is not connected
            with process(gateway, lambda ready: bool(ready["nats"])) as served:
                yield _stack(folder, port, (served,), broker, link), process


@contextlib.asynccontextmanager
async def bare(folder: Path, cores: Cores, record: bytes, *, behind: str = UVICORN) -> AsyncIterator[Stack]:
    """The limit, on a nats-server that is provisioned like Warmlane's, *behind* this ASGI server."""
    (folder / "record.json").write_bytes(record)
    port = free_port()
    with nats(folder, cores) as broker:
        async with linked(broker.url) as link:
            await provision(link, wanted(load_settings(_settings(folder)).catalog("tiny"), keep_s=KEEP_S))
            given = {"BENCH_NATS_URL": broker.url_of("gateway"), "BENCH_RECORD": str(folder / "record.json")}
            given["BENCH_SERVER"] = behind
            with _service("bare", folder, cores, port, given) as served:
                yield _stack(folder, port, (served,), broker, link)


@contextlib.asynccontextmanager
async def celery(folder: Path, cores: Cores, *, works: bool = False) -> AsyncIterator[Stack]:
    """The service with Redis, and a worker where it *works*."""
    redis_port, port = free_port(), free_port()
    broker = server(
        "redis-server",
        ["redis-server", "--port", str(redis_port), "--dir", str(folder), *_REDIS_OPTIONS],
        folder=folder,
        cores=cores.rest,
        is_ready=lambda: listens(redis_port),
    )
    given = {"BENCH_REDIS_URL": f"redis://{HOST}:{redis_port}/0"}
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    work = ["celery", "-A", "tests.bench.peers.celery_app:celery", "worker", "--pool", "solo", *quiet]
    with (
        broker as stored,
        _service("celery_app", folder, cores, port, given) as served,
        _worker(work, folder, cores, given) if works else contextlib.nullcontext() as worker,
    ):
        yield Stack(
            address=(HOST, port),
            served=(served,) if worker is None else (served, worker),
            brokers=(stored,),
            folder=folder,
        )


@contextlib.asynccontextmanager
async def taskiq(folder: Path, cores: Cores, *, app: str = "taskiq_app", works: bool = False) -> AsyncIterator[Stack]:
    """The service *app* with nats-server, and a worker where it *works*."""
    port = free_port()
    with nats(folder, cores) as broker:
        given = {"BENCH_NATS_URL": broker.url}
        work = ["taskiq", "worker", "--workers", "1", "tests.bench.peers.taskiq_app:broker"]
        with (
            _service(app, folder, cores, port, given) as served,
            _worker(work, folder, cores, given) if works else contextlib.nullcontext() as worker,
        ):
            yield _stack(folder, port, (served,) if worker is None else (served, worker), broker, None)


class Broker(Struct, frozen=True):
    """A nats-server."""

    process: Server
    address: str

    def url_of(self, role: Role) -> str:
        """The address with the user *role*."""
        return self.address.replace("://", f"://{role}:{_PASSWORDS[role]}@")

    @property
    def url(self) -> str:
        """The address with the user `admin`, who may do everything."""
        return self.url_of("admin")


@contextlib.contextmanager
def nats(folder: Path, cores: Cores) -> Iterator[Broker]:
    """A nats-server with Warmlane's configuration and an empty store."""
    port = free_port()
    store = folder / "nats"
    store.mkdir()
    with server(
        "nats-server",
        [str(find_nats_server()), "-c", str(nats_conf()), "-a", HOST, "-p", str(port), "-sd", str(store)],
        folder=folder,
        cores=cores.rest,
        is_ready=lambda: listens(port, greets=b"INFO"),
        env=environment(),
    ) as process:
        yield Broker(process, f"nats://{HOST}:{port}")


@contextlib.asynccontextmanager
async def linked(url: str) -> AsyncIterator[NatsLink]:
    """A connection that lasts until the block ends."""
    link = await NatsLink.connect(url, name="bench")
    try:
        yield link
    finally:
        await link.close()


async def say_warm(link: NatsLink, model: str = MODEL, worker: str = LANE) -> None:
    """Sends a heartbeat as the lane would. It counts for a minute, if no other comes."""
    heartbeat = LaneHeartbeat(
        model=model,
        worker=worker,
        state=LaneState.WARM,
        health_age_s=0.0,
        slot="cpu-0",
        pid=os.getpid(),
        started_at=datetime.now(UTC),
    )
    await link.entries.put(LANES, f"{model}.{worker}", msgspec.json.encode(heartbeat))


def environment(**more: str) -> dict[str, str]:
    """The environment of a measured process: without the machine's own settings of Warmlane or of an exporter."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WARMLANE_", "OTEL_"))}
    return clean | {password_variable(role): password for role, password in _PASSWORDS.items()} | more


def started_file(folder: Path) -> Path:
    """The file in which a peer's worker in *folder* reports when tasks began."""
    return folder / "started.txt"


def _settings(folder: Path) -> Path:
    text = resources.files("contracts").joinpath("inference_settings.json").read_text()
    path = folder / "settings.json"
    path.write_text(json.dumps(json.loads(text) | {"lane_queue_max_msgs": QUEUE_MAX_MSGS}))
    return path


def _stack(folder: Path, port: int, served: tuple[Server, ...], broker: Broker, link: NatsLink | None) -> Stack:
    return Stack(address=(HOST, port), served=served, brokers=(broker.process,), folder=folder, link=link)


def _service(
    module: str, folder: Path, cores: Cores, port: int, given: Mapping[str, str]
) -> contextlib.AbstractContextManager[Server]:
    return server(
        module,
        [sys.executable, "-m", f"tests.bench.peers.{module}"],
        folder=folder,
        cores=cores.served,
        is_ready=lambda: listens(port),
        env=environment(BENCH_PORT=str(port), **given),
    )


def direct(
    name: str, folder: Path, cores: frozenset[int], *, settings: Path, models_dir: Path
) -> contextlib.AbstractContextManager[Script]:
    """The script `tests.bench.peers.direct` on *cores*, which are those of the worker that it is compared with."""
    command = [sys.executable, "-m", "tests.bench.peers.direct"]
    video = folder / f"{name}.mp4"
    return script(
        name,
        [*command, str(settings), str(models_dir), str(video)],
        folder=folder,
        cores=cores,
        env=environment(HF_HUB_OFFLINE="1"),
    )


def _worker(
    command: list[str], folder: Path, cores: Cores, given: Mapping[str, str]
) -> contextlib.AbstractContextManager[Server]:
    program = str(Path(sys.executable).with_name(command[0]))
    started = started_file(folder)
    # the worker does not report when it takes work: the measurement sends a task and waits for it to begin
    return server(
        "worker",
        [program, *command[1:]],
        folder=folder,
        cores=cores.rest,
        is_ready=lambda: True,
        env=environment(BENCH_STARTED=str(started), **given),
    )


def _answers(port: int, holds: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        return holds(httpx.get(f"http://{HOST}:{port}/readyz", timeout=5, verify=NO_TLS).json())
    except (httpx.TransportError, json.JSONDecodeError):
        return False
