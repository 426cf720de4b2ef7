"""A real gateway process on a real nats-server, and lanes that are reported warm."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import pytest

from contracts.lanes import LaneHeartbeat, LaneState
from contracts.settings import load_settings
from contracts.topology import LANES
from ops.nats_link import NatsLink
from ops.processes import warmlane_command
from ops.provision import provision, wanted
from tests.conftest import KEEP_S
from tests.support import NatsServer, clean_environment, eventually_sync, free_port

MODELS = ("anisora", "phr00t")


class GatewayProcess:
    """`warmlane gateway` with its server. No worker runs: what is accepted stays queued."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.artifacts = folder / "artifacts"
        (folder / "nats").mkdir()
        self.nats = NatsServer(folder / "nats")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Starts the server on the first call, and a gateway that answers when this returns."""
        arguments = ["gateway", "--port", str(self.port), "--nats-url", self.nats.url, "--data-dir", str(self.folder)]
        with (self.folder / "gateway.log").open("ab") as log:
            command = warmlane_command(*arguments, *options)
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=clean_environment())
        eventually_sync(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            assert self._process.wait(timeout=20) == 0, self.log()


async def report_lane(link: NatsLink, model: str, state: LaneState, *, worker: str | None = None) -> None:
    """Puts a heartbeat, as a lane worker does."""
    heartbeat = LaneHeartbeat(
        model=model,
        worker=worker or f"{model}-0",
        state=state,
        health_age_s=0.0,
        slot="cpu-0",
        pid=1,
        started_at=datetime.now(UTC),
    )
    await link.put(LANES, f"{model}.{heartbeat.worker}", msgspec.json.encode(heartbeat))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway for the tests of a module; both models have a lane that was reported warm."""
    process = GatewayProcess(tmp_path_factory.mktemp("gateway"))
    process.nats.start()

    async def prepare() -> None:
        link = await NatsLink.connect(process.nats.url, name="test")
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        for model in MODELS:
            await report_lane(link, model, LaneState.WARM)
        await link.close()

    asyncio.run(prepare())
    process.start("--keep", f"{KEEP_S:g}s")
    yield process
    process.stop()
    process.nats.stop()


@pytest.fixture
async def http(gateway: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway, and lanes that are warm now."""
    link = await NatsLink.connect(gateway.nats.url, name="test")
    for model in MODELS:
        await report_lane(link, model, LaneState.WARM)
    await link.close()
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        yield client


@pytest.fixture
async def gateway_link(gateway: GatewayProcess) -> AsyncIterator[NatsLink]:
    """A connection to the gateway's server."""
    link = await NatsLink.connect(gateway.nats.url, name="test")
    yield link
    await link.close()
