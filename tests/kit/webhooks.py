"""What tests of webhooks do with a system: register an endpoint, run a task by hand, and look at its deliveries."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from contracts import lifecycle
from contracts.settings import load_settings
from contracts.tasks import VideoFile, encode_task
from contracts.topology import TASKS
from ops.nats.provisioning import provision, wanted
from tests.kit.gateway import GatewayProcess, System
from tests.kit.patient import connected
from tests.kit.support import BOUND_S, KEEP_S, eventually

OPTIONS: Final = ("--keep", f"{KEEP_S:g}s", "--webhooks-allow", "127.0.0.0/8")


@contextlib.contextmanager
def allowing_gateway(folder: Path) -> Iterator[GatewayProcess]:
    """A gateway whose operator allowed receivers on the loopback, with a server of its own."""
    process = GatewayProcess(folder)
    process.nats.start()

    async def prepare() -> None:
        link = await connected(process.nats.url)
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        await link.close()

    asyncio.run(prepare())
    process.start(*OPTIONS)
    try:
        yield process
    finally:
        process.stop()
        process.nats.stop()


@contextlib.asynccontextmanager
async def system_of(gateway: GatewayProcess) -> AsyncIterator[System]:
    """A client of *gateway*; the test plays the workers. The client's endpoints are removed afterwards."""
    link = await connected(gateway.nats.url)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=BOUND_S) as http:
        yield System(gateway, link, http)
        for endpoint in (await http.get("/webhooks")).json()["endpoints"]:
            await http.delete(f"/webhooks/{endpoint['id']}")
    await link.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with allowing_gateway(tmp_path_factory.mktemp("webhooks")) as process:
        yield process


@pytest.fixture
async def system(gateway: GatewayProcess) -> AsyncIterator[System]:
    async with system_of(gateway) as found:
        yield found


async def register(system: System, url: str, *events: str) -> tuple[str, str]:
    """The id of a new endpoint, and its secret."""
    body: dict[str, Any] = {"url": url} | ({"events": list(events)} if events else {})
    answer = await system.http.post("/webhooks", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["endpoint"]["id"], answer.json()["secret"]


async def submit(system: System, **fields: Any) -> str:
    answer = await system.http.post(
        "/generate", json={"model": "anisora", "prompt": "x"} | fields, headers={"prefer": "respond-async"}
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def finish(system: System, task_id: str) -> None:
    """Ends the task as a worker does that has made its video."""
    task, revision = await system.record(task_id)
    video = VideoFile(path=task.video_path, bytes=9, sha256="0" * 64, width=96, height=64, frames=17, fps=16)
    done = lifecycle.finish(task, video=video, memory=None, now=datetime.now(UTC))
    await system.link.entries.update(TASKS, task_id, encode_task(done), revision=revision)


async def run(system: System, **fields: Any) -> str:
    """Submits a task, and claims and finishes it by hand; returns its id."""
    task_id = await submit(system, **fields)
    await system.claim(task_id)
    await finish(system, task_id)
    return task_id


async def deliveries(system: System, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await system.http.get("/webhooks/deliveries", params=query)).json()["deliveries"]
    return found


async def delivery(system: System, name: str, status: str, *, attempts: int | None = None) -> dict[str, Any]:
    """The delivery *name*, once it is in *status*, after *attempts*."""

    async def look() -> dict[str, Any] | None:
        for each in await deliveries(system):
            if each["id"] == name and each["status"] == status and attempts in (None, each["attempts"]):
                return each
        return None

    found = await eventually(look)
    assert found is not None
    return found
