"""A real gateway process on a real nats-server, and lanes that are reported warm."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec

from contracts import lifecycle
from contracts.lanes import LaneState
from contracts.settings import load_settings
from contracts.tasks import GenerationTask, TaskStatus, decode_task, encode_task
from contracts.topology import DEGRADED, DEGRADED_MAX_MSGS, LANES, TASKS, work_stream, work_subject
from ops.machine.processes import warmlane_command
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.kit.behind import js_of
from tests.kit.patient import connected
from tests.kit.records import lane_report
from tests.kit.support import (
    BOUND_S,
    KEEP_S,
    NO_TLS,
    NatsServer,
    clean_environment,
    eventually,
    eventually_sync,
    free_port,
    require_sound,
    whole_lines,
)
from tests.kit.warm_cli import Forked

MODELS = ("anisora", "phr00t")


class GatewayProcess:
    """`warmlane gateway` with its server. No worker runs: what is accepted stays queued.

    With *beside* it shares server and artifact store with another one.
    """

    def __init__(self, folder: Path, *, beside: "GatewayProcess | None" = None, forked: bool = True) -> None:
        """*forked*: the process is a `warm_cli.Forked`, else the console script."""
        self.folder = folder
        self.log_file = folder / "gateway.log"
        self._forked = forked
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        if beside is None:
            (folder / "nats").mkdir()
        self.data_dir: Path = folder if beside is None else beside.data_dir
        self.artifacts = self.data_dir / "artifacts"
        self.nats: NatsServer = NatsServer(folder / "nats") if beside is None else beside.nats
        self._process: subprocess.Popen[bytes] | Forked | None = None

    def start(self, *options: str, **environment: str) -> None:
        """Starts the server on the first call, and a gateway. Returns when the gateway answers."""
        arguments = [
            "gateway",
            "--port",
            str(self.port),
            "--nats-url",
            self.nats.address,
            "--data-dir",
            str(self.data_dir),
        ]
        with self.log_file.open("ab") as log:
            env = clean_environment() | environment
            if self._forked:
                self._process = Forked(*arguments, *options, stdout=log, stderr=log, env=env)
            else:
                command = warmlane_command(*arguments, *options)
                self._process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        eventually_sync(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            return httpx.get(f"{self.url}/healthz", verify=NO_TLS, timeout=BOUND_S).status_code == 200
        except httpx.TransportError:
            return False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        return whole_lines(self.log_file.read_text())

    def kill(self) -> None:
        """`kill -9`; returns when the process has ended."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=BOUND_S)
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            assert self._process.wait(timeout=BOUND_S) == 0, self.log()
            require_sound(self.log())


@contextlib.contextmanager
def provisioned_gateway(
    folder: Path, *warm: str, options: Sequence[str] = (), **environment: str
) -> Iterator[GatewayProcess]:
    """A gateway with *options* on a server with its streams and buckets. Each model of *warm* has a lane that is
    reported warm."""
    process = GatewayProcess(folder)
    process.nats.start()

    async def prepare() -> None:
        link = await connected(process.nats.url)
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        for model in warm:
            await report_lane(link, model, LaneState.WARM)
        await link.close()

    asyncio.run(prepare())
    process.start("--keep", f"{KEEP_S:g}s", *options, **environment)
    yield process
    process.stop()
    process.nats.stop()


async def report_lane(link: NatsLink, model: str, state: LaneState, *, worker: str | None = None) -> None:
    """Puts a heartbeat, as a lane worker does."""
    name = worker or f"{model}-0"
    report = lane_report(name, state, model=model, started_at=datetime.now(UTC))
    await link.entries.put(LANES, f"{model}.{name}", msgspec.json.encode(report))


async def warm_lanes(link: NatsLink, *gateways: GatewayProcess, models: Sequence[str] = MODELS) -> None:
    """Reports a warm lane of each of *models*; returns when each of *gateways* knows."""
    for model in models:
        await report_lane(link, model, LaneState.WARM)
    async with httpx.AsyncClient(timeout=BOUND_S, verify=NO_TLS) as http:
        for gateway in gateways:

            async def knows(url: str = gateway.url) -> bool:
                found = (await http.get(f"{url}/readyz")).json()["models"]
                return all(found[model]["warm"] for model in models)

            await eventually(knows)


class System:
    """A gateway, a client of it, and a connection to its server: workers are played by hand."""

    def __init__(self, gateway: GatewayProcess, link: NatsLink, http: httpx.AsyncClient) -> None:
        self.gateway, self.link, self.http = gateway, link, http

    async def post(self, model: str = "anisora", *, image: str | None = None, **headers: str) -> httpx.Response:
        body = {"model": model, "prompt": "x"} | ({} if image is None else {"image": image})
        return await self.http.post("/generate", json=body, headers=headers)

    async def submit(self, model: str = "anisora", *, image: str | None = None, **headers: str) -> dict[str, Any]:
        """Submits a task with `respond-async`, and returns the answer's body."""
        response = await self.post(model, image=image, **{"prefer": "respond-async"} | headers)
        assert response.status_code == 202, response.text
        task: dict[str, Any] = response.json()
        return task

    async def record(self, task_id: str) -> tuple[GenerationTask, int]:
        entry = await self.link.entries.get(TASKS, task_id)
        assert entry is not None
        assert entry.value is not None
        return decode_task(entry.value), entry.revision

    async def becomes(
        self, task_id: str, status: TaskStatus, *, epoch: int, within_s: float = BOUND_S
    ) -> GenerationTask:
        async def look() -> GenerationTask | None:
            entry = await self.link.entries.get(TASKS, task_id)
            if entry is None or entry.value is None:
                return None
            task = decode_task(entry.value)
            return task if (task.status, task.epoch) == (status, epoch) else None

        found = await eventually(look, within_s=within_s)
        assert found is not None
        return found

    async def claim(self, task_id: str, *, lease_s: float = 60) -> GenerationTask:
        """Claims the task as a worker does (record, ack) that is never heard of again."""
        task, revision = await self.record(task_id)
        claimed = lifecycle.claim(task, owner="nonce", worker="by-hand", lease_s=lease_s, now=datetime.now(UTC))
        await self.link.entries.update(TASKS, task_id, encode_task(claimed), revision=revision)
        await self.link.messages.purge(
            work_stream(task.route, task.model), work_subject(task.route, task.model, task_id)
        )
        return claimed

    async def depth(self, stream: str = DEGRADED) -> int:
        """The messages in *stream*, as the server counts them."""
        return (await js_of(self.link).stream_info(stream)).state.messages

    async def messages(self, route: Literal["lane", "degraded"], task_id: str) -> list[GenerationTask]:
        """The messages of a task of anisora in the queue of *route*."""
        stream, subject = work_stream(route, "anisora"), work_subject(route, "anisora", task_id)
        state = (await js_of(self.link).stream_info(stream)).state
        found = []
        for sequence in range(max(1, state.first_seq), state.last_seq + 1):
            stored = await self.link.messages.get(stream, sequence)
            if stored is not None and stored.subject == subject:
                found.append(decode_task(stored.data or b""))
        return found

    async def only_task(self) -> str:
        """The id of the one task in the degraded queue, once it is recorded."""

        async def look() -> str | None:
            state = (await js_of(self.link).stream_info(DEGRADED)).state
            stored = await self.link.messages.get(DEGRADED, state.last_seq) if state.messages == 1 else None
            task_id = (stored.subject or "").rsplit(".", 1)[-1] if stored is not None else ""
            return task_id if task_id and await self.link.entries.get(TASKS, task_id) is not None else None

        task_id = await eventually(look)
        assert task_id is not None
        return task_id

    async def fill(self) -> None:
        """Fills every place that is left in the degraded queue."""
        for number in range(DEGRADED_MAX_MSGS - await self.depth()):
            await self.link.messages.publish(work_subject("degraded", "phr00t", f"filler-{number}"), b"")

    async def lane_is(self, state: LaneState, *, model: str = "anisora") -> None:
        """Reports a lane of *model*, and returns when the gateway knows."""
        await report_lane(self.link, model, state)

        async def known() -> bool:
            lanes: list[str] = (await self.http.get("/readyz")).json()["models"][model]["lanes"]
            return lanes == [state.value]

        await eventually(known)


@contextlib.asynccontextmanager
async def fresh_system(folder: Path, settings: Path, **environment: str) -> AsyncIterator[System]:
    """A system of its own, with *settings*, and a gateway with *environment*."""
    gateway = GatewayProcess(folder)
    async with contextlib.AsyncExitStack() as leave:
        leave.callback(gateway.nats.stop)
        gateway.nats.start()
        link = await connected(gateway.nats.url)
        leave.push_async_callback(link.close)
        await provision(link, wanted(load_settings(settings).catalog("tiny"), keep_s=KEEP_S))
        leave.callback(gateway.stop)
        options = ("--settings", str(settings), "--keep", f"{KEEP_S:g}s")
        await asyncio.to_thread(lambda: gateway.start(*options, **environment))
        http = await leave.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=BOUND_S, verify=NO_TLS))
        yield System(gateway, link, http)
