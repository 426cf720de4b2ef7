"""In a full degraded queue a request of a higher class takes a place, where the settings allow it (ADR 0039)."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.settings import load_settings
from contracts.tasks import FailureCode, GenerationTask, TaskStatus
from contracts.topology import DEGRADED, DEGRADED_MAX_MSGS
from ops.nats.provisioning import provision, wanted
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess, System
from tests.kit.patient import connected
from tests.kit.samples import data_uri, picture
from tests.kit.support import BOUND_S, KEEP_S, eventually

IMAGE = data_uri(picture("PNG"))


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    """Two gateways of one system, whose settings allow displacement."""
    first = GatewayProcess(tmp_path_factory.mktemp("gateway"))
    first.nats.start()

    async def prepare() -> None:
        link = await connected(first.nats.url)
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        await link.close()

    asyncio.run(prepare())
    second = GatewayProcess(tmp_path_factory.mktemp("second"), beside=first)
    for gateway in (first, second):
        gateway.start("--keep", f"{KEEP_S:g}s", "--displace")
    yield first, second
    second.stop()
    first.stop()
    first.nats.stop()


@pytest.fixture
async def systems(gateways: tuple[GatewayProcess, GatewayProcess]) -> AsyncIterator[tuple[System, System]]:
    """Both gateways, with an empty queue."""
    first, second = gateways
    link = await connected(first.nats.url)
    await js_of(link).purge_stream(DEGRADED)
    async with (
        httpx.AsyncClient(base_url=first.url, timeout=BOUND_S) as one,
        httpx.AsyncClient(base_url=second.url, timeout=BOUND_S) as two,
    ):
        yield System(first, link, one), System(second, link, two)
        while pending := (await one.get("/tasks", params={"status": "pending", "limit": 100})).json()["tasks"]:
            for task in pending:
                await one.delete(f"/tasks/{task['id']}")
    await link.close()


async def fill(system: System, priority: str, count: int = DEGRADED_MAX_MSGS) -> list[str]:
    """The ids of *count* tasks of the class *priority*, oldest first."""
    return [(await system.submit(priority=priority))["id"] for _ in range(count)]


async def known(system: System, count: int = DEGRADED_MAX_MSGS) -> None:
    """Returns when *system* knows of *count* tasks that wait."""

    async def look() -> bool:
        page = await system.http.get("/tasks", params={"status": "pending", "limit": 100})
        return len(page.json()["tasks"]) == count

    await eventually(look)


async def displaced(system: System, ids: list[str]) -> dict[str, GenerationTask]:
    """The tasks of *ids* that were displaced."""
    records = [(await system.record(task_id))[0] for task_id in ids]
    return {task.id: task for task in records if task.displaced_by is not None}


async def explained(system: System, task_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = (await system.http.get(f"/admin/tasks/{task_id}/explain")).json()
    return answer


async def test_a_higher_class_takes_the_place_of_the_newest_of_the_lowest(systems: tuple[System, System]) -> None:
    system, _ = systems
    background = await fill(system, "background", DEGRADED_MAX_MSGS - 1)
    standard = await fill(system, "standard", 1)
    arrival = await system.submit(priority="interactive")
    assert await system.depth() == DEGRADED_MAX_MSGS
    gone = await displaced(system, background + standard)
    assert list(gone) == [background[-1]]
    ended = gone[background[-1]]
    assert (ended.status, ended.displaced_by) == (TaskStatus.FAILED, arrival["id"])
    assert ended.error is not None
    assert ended.error.code is FailureCode.QUEUE_OVERLOADED
    assert arrival["timeline"][0]["detail"] == "to degraded.anisora, in the place of a task of the class background"
    assert (await explained(system, arrival["id"]))["displaced"] == ended.id
    assert (await explained(system, ended.id))["displaced_by"] == arrival["id"]
    text = (await system.http.get("/metrics")).text
    assert 'warmlane_tasks_displaced_total{model="anisora",priority="background"} 1' in text


async def test_the_held_caller_of_a_displaced_task_is_answered_at_once_and_may_try_again(
    systems: tuple[System, System],
) -> None:
    system, other = systems
    await fill(system, "standard", DEGRADED_MAX_MSGS - 1)
    # a task that the other gateway holds, with an image, which must go as well
    held = asyncio.create_task(other.post(image=IMAGE, priority="background", **{"idempotency-key": "again"}))
    await known(system)
    images = sorted(system.gateway.artifacts.rglob("images/*"))
    await system.submit(priority="interactive")
    answer = await held
    body = answer.json()
    assert (answer.status_code, body["code"], body["limit"]) == (503, "queue_overloaded", "displaced")
    assert int(answer.headers["retry-after"]) >= 1
    task_id = body["instance"].rsplit("/", 1)[-1]
    record, _ = await system.record(task_id)
    assert record.was_refused
    assert record.withdrawn is False

    async def image_is_gone() -> bool:
        return len(sorted(system.gateway.artifacts.rglob("images/*"))) == len(images) - 1

    await eventually(image_is_gone)
    # no task of a lower class waits, so its next try finds the queue full
    again = await other.post(priority="background", **{"idempotency-key": "again-2"})
    assert (again.status_code, again.json()["limit"]) == (503, "depth")


async def test_nobody_is_displaced_by_his_own_class_or_a_lower_one(systems: tuple[System, System]) -> None:
    system, _ = systems
    ids = await fill(system, "standard")
    for priority in ("standard", "background"):
        assert (await system.post(priority=priority)).json()["limit"] == "depth"
    assert await displaced(system, ids) == {}


async def test_a_claimed_task_is_never_displaced(systems: tuple[System, System]) -> None:
    system, _ = systems
    ids = await fill(system, "background")
    # claimed tasks: until the ack their messages take a place, and the gateway may think that they wait
    claimed = [await system.claim(task_id) for task_id in ids[1:]]
    await system.fill()
    first, second = await system.submit(priority="interactive"), await system.post(priority="interactive")
    assert list(await displaced(system, ids)) == [ids[0]]
    assert first["status"] == "pending"
    assert (second.status_code, second.json()["limit"]) == (503, "depth")
    records = [(await system.record(task.id))[0] for task in claimed]
    assert {record.status for record in records} == {TaskStatus.PROCESSING}


async def test_two_gateways_displace_no_task_twice(systems: tuple[System, System]) -> None:
    """Every freed place is for one request, whichever gateway it came to."""
    ids = await fill(systems[0], "background")
    for system in systems:
        await known(system)
    posts = [systems[number % 2].post(priority="interactive", prefer="respond-async") for number in range(20)]
    answers = Counter(answer.status_code for answer in await asyncio.gather(*posts))
    gone = await displaced(systems[0], ids)
    assert answers[202] >= 20 - answers[503]
    assert len(gone) >= answers[202]
    by = Counter(task.displaced_by for task in gone.values())
    # a request displaces a second task only if another request took the place that the first one had freed
    assert max(by.values()) <= 3
    assert await systems[0].depth() == DEGRADED_MAX_MSGS - (len(gone) - answers[202])


async def test_it_is_off_by_default(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path)
    gateway.nats.start()
    link = await connected(gateway.nats.url)
    try:
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        await asyncio.to_thread(gateway.start, "--keep", f"{KEEP_S:g}s")
        async with httpx.AsyncClient(base_url=gateway.url, timeout=BOUND_S) as http:
            system = System(gateway, link, http)
            ids = await fill(system, "background")
            assert (await system.post(priority="interactive")).json()["limit"] == "depth"
            assert await displaced(system, ids) == {}
    finally:
        await link.close()
        gateway.stop()
        gateway.nats.stop()
