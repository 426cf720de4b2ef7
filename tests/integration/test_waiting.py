"""A process that starts before nats-server, `warmlane provision` or the first key waits, and needs no restart."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from contracts.settings import Catalog
from gateway.services import Services
from lane_worker.runtime.process import connected
from ops.artifact_place import FolderPlace
from ops.nats import awaited
from ops.nats.access import NatsAccess
from ops.nats.api_keys import add
from ops.nats.awaited import LeftWaiting, once_there
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, require_degraded, wanted
from ops.telemetry.service_manager import SOCKET_VARIABLE
from tests.kit.support import BOUND_S, KEEP_S, NatsServer, clean_environment, eventually, free_port
from tests.kit.warm_cli import Forked


class WaitingGateway:
    """`warmlane gateway`, from its start on, even before it is ready."""

    def __init__(self, server: NatsServer, folder: Path, *more: str) -> None:
        self.log_file = folder / "gateway.log"
        self.reports: list[str] = []
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(folder / "notify"))
        threading.Thread(target=self._listen, daemon=True).start()
        self.url = f"http://127.0.0.1:{free_port()}"
        port = self.url.rpartition(":")[2]
        options = ("--port", port, "--nats-url", server.address, "--data-dir", str(folder), "--keep", f"{KEEP_S:g}s")
        environment = clean_environment() | {SOCKET_VARIABLE: str(folder / "notify")}
        with self.log_file.open("wb") as log:
            self.process = Forked("gateway", *options, *more, stdout=log, stderr=log, env=environment)

    def _listen(self) -> None:
        while not self.reports or self.reports[-1] != "STOPPING=1":
            self.reports += self._manager.recv(4096).decode().splitlines()
        self._manager.close()

    async def status(self, http: httpx.AsyncClient, path: str) -> int | None:
        assert self.process.poll() is None, self.log_file.read_text()
        with contextlib.suppress(httpx.TransportError):
            return (await http.get(self.url + path)).status_code
        return None

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=BOUND_S)


@pytest.fixture
def gateway(nats_server: NatsServer, tmp_path: Path) -> Iterator[WaitingGateway]:
    """A gateway whose server is dead when it starts."""
    nats_server.kill()
    gateway = WaitingGateway(nats_server, tmp_path)
    yield gateway
    if gateway.process.poll() is None:
        gateway.end()


async def test_a_gateway_waits_for_its_server_and_for_what_is_on_it(
    gateway: WaitingGateway, nats_server: NatsServer, catalog: Catalog
) -> None:
    async with httpx.AsyncClient(timeout=BOUND_S) as http:

        async def lives() -> bool:
            return await gateway.status(http, "/livez") == 200

        async def serves() -> bool:
            return await gateway.status(http, "/healthz") == 200

        async def lacks_streams() -> bool:
            return "run `warmlane provision`" in (await http.get(gateway.url + "/readyz")).text

        async def reports_that_it_serves() -> bool:
            return gateway.reports.count("READY=1") == 1 and "STATUS=serves" in gateway.reports

        async def reports_that_it_leaves() -> bool:
            return gateway.reports[-1] == "STOPPING=1"

        await eventually(lives)
        assert [await gateway.status(http, path) for path in ("/readyz", "/healthz", "/tasks")] == [503, 503, 503]
        nats_server.start()
        await eventually(lacks_streams)
        assert "READY=1" not in gateway.reports
        link = await NatsLink.connect(nats_server.url, name="test")
        await provision(link, wanted(catalog, keep_s=KEEP_S))
        await link.close()
        await eventually(serves)
        await eventually(reports_that_it_serves)
        assert (await http.get(gateway.url + "/tasks")).json()["tasks"] == []
        assert gateway.end() == 0
        await eventually(reports_that_it_leaves)
    assert any(line.startswith("STATUS=waiting: ") for line in gateway.reports)


async def test_a_gateway_that_waits_leaves_when_it_is_told_to(gateway: WaitingGateway) -> None:
    async with httpx.AsyncClient(timeout=BOUND_S) as http:

        async def lives() -> bool:
            return await gateway.status(http, "/livez") == 200

        await eventually(lives)
    assert gateway.end() == 0, gateway.log_file.read_text()
    assert "Traceback" not in gateway.log_file.read_text()


async def test_a_gateway_for_others_waits_for_the_first_key(
    link: NatsLink, nats_server: NatsServer, catalog: Catalog, tmp_path: Path
) -> None:
    reasons: asyncio.Queue[str] = asyncio.Queue()

    async def begin() -> tuple[Services, contextlib.AsyncExitStack]:
        services = Services(
            catalog=catalog, nats=nats_server.url, artifacts_dir=tmp_path, keep_s=KEEP_S, opens_without_keys=False
        )
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(services.running())
            return services, stack.pop_all()

    starting = asyncio.create_task(once_there(begin, stop=asyncio.Event(), on_wait=reasons.put_nowait))
    assert "no API key is in force" in await reasons.get()
    await add(link, "alice", ("read",), now=datetime.now(UTC))
    services, running = await starting
    async with running:
        assert [key.caller for key in services.keys.known()] == ["alice"]
    assert reasons.empty()


@contextlib.asynccontextmanager
async def worker(server: NatsServer, folder: Path) -> AsyncIterator[NatsLink]:
    async with connected(
        NatsAccess.at(server.url),
        role="degraded",
        name="degraded-0",
        data_dir=folder,
        artifacts=FolderPlace(folder / "artifacts"),
        require=lambda link, _: require_degraded(link),
    ) as here:
        yield here.link


async def test_a_worker_waits_for_its_queue(nats_server: NatsServer, catalog: Catalog, tmp_path: Path) -> None:
    link = await NatsLink.connect(nats_server.url, name="test")
    with capture_logs() as lines:

        async def begin() -> bool:
            async with worker(nats_server, tmp_path) as its:
                return await its.streams.exists("DEGRADED")

        async def waits() -> bool:
            return any(line["event"] == "waiting" for line in lines)

        beginning = asyncio.create_task(begin())
        await eventually(waits)
        await provision(link, wanted(catalog, keep_s=KEEP_S))
        assert await beginning
    await link.close()
    assert [line["reason"] for line in lines if line["event"] == "waiting"] == [
        "the server lacks DEGRADED; run `warmlane provision`"
    ]


async def test_who_waits_leaves_at_once_and_who_is_cancelled_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awaited, "RETRY_S", 3_600)
    begun = asyncio.Event()

    async def never() -> None:
        begun.set()
        await asyncio.Event().wait()

    for ends, error in ((True, LeftWaiting), (False, asyncio.CancelledError)):
        begun.clear()
        stop = asyncio.Event()
        waiting = asyncio.create_task(once_there(never, stop=stop))
        await begun.wait()
        if ends:
            stop.set()
        else:
            waiting.cancel()
        with pytest.raises(error):
            await waiting


async def test_what_nobody_brings_is_raised() -> None:
    async def wrong() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await once_there(wrong, stop=asyncio.Event())
