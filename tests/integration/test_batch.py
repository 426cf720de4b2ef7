"""`POST /generate/batch`: the gateway accepts all of it or nothing (ADR 0053)."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from contracts import lifecycle
from contracts.generation.batch import validate_batch
from contracts.settings import Catalog
from contracts.tasks import Priority, TaskStatus, keyed_task_id
from contracts.topology import DEGRADED, DEGRADED_MAX_MSGS, LANES, lane_key
from gateway.boards.snapshots import Snapshot
from gateway.placing.admission import Admission, KeyReused, Placed
from gateway.placing.batches import Batches, BatchItem
from gateway.placing.overload import Overloaded
from gateway.services import Services
from ops.artifacts import StorageFailed
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess, System, provisioned_gateway
from tests.kit.gateway_parts import services_on
from tests.kit.patient import connected
from tests.kit.records import lane_report
from tests.kit.samples import data_uri, picture
from tests.kit.support import BOUND_S, KEEP_S, NatsServer, eventually

IMAGE = data_uri(picture("PNG"))
FOX = {"model": "anisora", "prompt": "a fox", "image": IMAGE}
LANTERN = {"model": "phr00t", "prompt": "a lantern"}


def batch(*requests: dict[str, Any]) -> dict[str, Any]:
    return {"requests": list(requests)}


def numbered(count: int, **more: Any) -> dict[str, Any]:
    return batch(*({**LANTERN, "seed": seed} | more for seed in range(count)))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """No model has a lane, and no worker runs."""
    with provisioned_gateway(tmp_path_factory.mktemp("gateway")) as process:
        yield process
        process.nats.stop()


@pytest.fixture
async def system(gateway: GatewayProcess) -> AsyncIterator[System]:
    """The gateway's system, whose queue is empty, and is emptied afterwards."""
    link = await connected(gateway.nats.url)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=BOUND_S) as http:
        yield System(gateway, link, http)
        for task in await pending(http):
            await http.delete(f"/tasks/{task['id']}")
    await link.close()


async def pending(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = (await http.get("/tasks?status=pending&limit=100")).json()["tasks"]
    return tasks


async def test_every_request_becomes_a_task_in_its_place(system: System) -> None:
    asked = batch(FOX, LANTERN | {"priority": "background", "labels": {"take": "2"}}, LANTERN | {"seed": 7})
    answer = await system.http.post("/generate/batch", json=asked, headers={"priority": "interactive"})
    assert answer.status_code == 202, answer.text
    tasks = answer.json()["tasks"]
    assert [(task["model"], task["priority"], task["labels"]) for task in tasks] == [
        ("anisora", "interactive", {}),
        ("phr00t", "background", {"take": "2"}),
        ("phr00t", "interactive", {}),
    ]
    assert tasks[2]["parameters"]["seed"] == 7
    assert {task["id"] for task in await pending(system.http)} == {task["id"] for task in tasks}
    assert await system.depth() == 3
    for task in tasks:  # clients have their ids: the gateway does not take them back
        assert (await system.record(task["id"]))[0].promised


async def test_one_wrong_request_is_none_accepted(system: System) -> None:
    asked = batch(FOX, LANTERN | {"steps": 5, "cfg": "x"}, LANTERN, {"model": "nobody", "prompt": "x"})
    answer = await system.http.post("/generate/batch", json=asked)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    pointers = [error["pointer"] for error in answer.json()["errors"]]
    assert pointers == ["/requests/1/steps", "/requests/1/cfg", "/requests/3/model"]
    for reference in ({"ref": "img_" + "0" * 24}, {"url": "https://example.invalid/x.png"}):
        answer = await system.http.post("/generate/batch", json=batch(LANTERN, FOX | {"image": reference}))
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["pointer"].startswith("/requests/1/image")
    webhook = {"url": "http://10.0.0.1/hook"}
    answer = await system.http.post("/generate/batch", json=batch(LANTERN, LANTERN | {"webhook": webhook}))
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/requests/1/webhook/url"]
    assert await system.depth() == 0


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({}, 422, "/requests"),
        ({"requests": {}}, 422, "/requests"),
        ({"requests": []}, 422, "/requests"),
        (numbered(21), 422, "/requests"),
        ({"requests": [LANTERN], "priority": "background"}, 422, ""),
        (batch(LANTERN, "x"), 422, "/requests/1"),  # type: ignore[arg-type]
    ],
)
async def test_what_is_no_batch(system: System, body: dict[str, Any], status: int, pointer: str) -> None:
    answer = await system.http.post("/generate/batch", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (status, pointer)
    assert await system.depth() == 0


async def test_the_same_key_is_the_same_tasks_and_no_other_batch(system: System) -> None:
    key = {"idempotency-key": "storyboard-1"}
    asked = batch(LANTERN, LANTERN | {"seed": 1})
    first = (await system.http.post("/generate/batch", json=asked, headers=key)).json()
    again = await system.http.post("/generate/batch", json=asked, headers=key)
    assert (again.status_code, [task["id"] for task in again.json()["tasks"]]) == (
        202,
        [task["id"] for task in first["tasks"]],
    )
    assert await system.depth() == 2
    for other in (batch(LANTERN), batch(*reversed(asked["requests"])), batch(*asked["requests"], LANTERN)):
        answer = await system.http.post("/generate/batch", json=other, headers=key)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    single = await system.http.post("/generate", json=LANTERN, headers=key | {"prefer": "respond-async"})
    assert single.status_code == 202  # a key names a request to one path
    assert await system.depth() == 3


async def test_a_queue_with_places_for_some_takes_none(system: System) -> None:
    for _ in range(DEGRADED_MAX_MSGS - 4):
        await system.submit("phr00t")
    answer = await system.http.post("/generate/batch", json=numbered(5))
    assert (answer.status_code, answer.json()["code"], answer.json()["limit"]) == (503, "queue_overloaded", "depth")
    assert "retry-after" in answer.headers
    assert await system.depth() == DEGRADED_MAX_MSGS - 4
    assert (await system.http.post("/generate/batch", json=numbered(4))).status_code == 202
    assert await system.depth() == DEGRADED_MAX_MSGS


async def test_of_batches_at_once_each_is_whole(system: System) -> None:
    answers = await asyncio.gather(*(system.http.post("/generate/batch", json=numbered(11)) for _ in range(5)))
    accepted = [answer.json()["tasks"] for answer in answers if answer.status_code == 202]
    assert {answer.status_code for answer in answers} <= {202, 503}
    assert all(len(tasks) == 11 for tasks in accepted)
    assert len(accepted) <= DEGRADED_MAX_MSGS // 11
    assert await system.depth() == 11 * len(accepted)
    assert {task["id"] for task in await pending(system.http)} == {task["id"] for tasks in accepted for task in tasks}


async def test_a_batch_amid_which_its_gateway_dies_is_completed_by_its_key(system: System) -> None:
    asked, key = batch(*(FOX | {"seed": seed} for seed in range(20))), {"idempotency-key": "storyboard-2"}
    asking = asyncio.create_task(system.http.post("/generate/batch", json=asked, headers=key))

    async def begun() -> bool:
        return await system.depth() > 0

    await eventually(begun)
    system.gateway.kill()
    with contextlib.suppress(httpx.HTTPError):
        await asking
    await asyncio.to_thread(system.gateway.start, "--keep", f"{KEEP_S:g}s")
    answer = await system.http.post("/generate/batch", json=asked, headers=key)
    assert answer.status_code == 202, answer.text
    ids = {task["id"] for task in answer.json()["tasks"]}
    assert {task["id"] for task in await pending(system.http)} == ids
    assert (len(ids), await system.depth()) == (20, 20)


@pytest.fixture
async def services(nats_server: NatsServer, catalog: Catalog, tmp_path: Path) -> AsyncIterator[Services]:
    """The parts of a gateway."""
    async with services_on(nats_server, catalog, tmp_path) as services:
        yield services


async def accepted(services: Services, body: dict[str, Any], key: str | None = None) -> list[Snapshot]:
    items = [BatchItem(each, Priority.STANDARD) for each in validate_batch(body, services.catalog)]
    return await services.batches.accept(items, caller="c", key=key, traceparent=None, require=lambda count: None)


async def test_what_was_placed_is_taken_back_and_the_key_may_try_again(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(*_: object) -> None:
        """Finds places for all: another client is faster between this look and the first task."""

    monkeypatch.setattr(Batches, "_require_places", none)
    others = await accepted(services, numbered(20))
    with pytest.raises(Overloaded):
        await accepted(services, numbered(6), "k")
    depth = (await js_of(services.link).stream_info(DEGRADED)).state.messages
    assert depth == 20
    ended = [services.tasks.index.get(row.id) for row in services.tasks.index.rows() if row.status is TaskStatus.FAILED]
    assert len(ended) == 5
    for other in others[:3]:
        await services.link.messages.purge(DEGRADED, f"degraded.phr00t.{other.task.id}")
    tasks = await accepted(services, numbered(6), "k")
    assert {each.task.status for each in tasks} == {TaskStatus.PENDING}
    assert await accepted(services, numbered(6), "k") == tasks
    with pytest.raises(KeyReused):
        await accepted(services, numbered(5), "k")


async def test_one_that_runs_already_is_taken_back_too(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker was faster than the rest of the batch: the gateway ends the task that it runs. The key makes another."""
    place = Admission.place
    placed: list[Snapshot] = []

    async def place_and_claim(self: Admission, *arguments: Any) -> Placed:
        if len(placed) == 1:
            raise Overloaded("depth", retry_after_s=1)
        made = await place(self, *arguments)
        placed.append(made.snapshot)
        moved = await services.tasks.move(
            made.snapshot.task.id,
            lambda task, _: lifecycle.claim(task, owner="o", worker="w", lease_s=20, now=task.created_at),
        )
        assert moved is not None
        return made

    monkeypatch.setattr(Admission, "place", place_and_claim)
    with pytest.raises(Overloaded):
        await accepted(services, numbered(2), "k")
    ended = await services.tasks.read(placed[0].task.id)
    assert ended is not None
    assert (ended.task.status, ended.task.was_refused, ended.task.attempt) == (TaskStatus.FAILED, True, 1)
    monkeypatch.undo()
    again = await accepted(services, numbered(2), "k")
    assert placed[0].task.id not in {each.task.id for each in again}


async def test_an_equal_batch_that_took_its_tasks_back_leaves_the_next_id_of_the_key(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks were taken back after this batch had looked for the tasks of its key."""
    first = await accepted(services, numbered(1), "k")
    moved = await services.tasks.move(
        first[0].task.id, lambda task, _: lifecycle.take_back(task, now=datetime.now(UTC))
    )
    assert moved is not None
    looks_too_early(monkeypatch)
    again = await accepted(services, numbered(1), "k")
    assert (again[0].task.status, again[0].task.promised) == (TaskStatus.PENDING, True)


async def test_what_an_equal_batch_was_answered_with_stays(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """This batch joined the other's tasks and could not place its last one: it takes back only what it made itself."""
    first = await accepted(services, numbered(2), "k")
    looks_too_early(monkeypatch)
    place = Admission.place

    async def last_fails(self: Admission, request: Any, sender: Any, task_id: str) -> Any:
        if sender.key.endswith("1"):
            raise StorageFailed
        return await place(self, request, sender, task_id)

    monkeypatch.setattr(Admission, "place", last_fails)
    with pytest.raises(StorageFailed):
        await accepted(services, numbered(2), "k")
    monkeypatch.undo()
    assert await accepted(services, numbered(2), "k") == first


@pytest.mark.parametrize("on_lane", [False, True], ids=["degraded", "lane"])
async def test_what_an_equal_batch_was_answered_with_is_not_taken_back(
    services: Services, monkeypatch: pytest.MonkeyPatch, on_lane: bool
) -> None:
    """The other batch joined the first task of this batch, and made the second, which this one could not make."""
    if on_lane:
        await report_lane(services)
    answered: list[Snapshot] = []

    async def meanwhile() -> None:
        answered.extend(await accepted(services, numbered(2), "k"))
        raise StorageFailed

    before_the_second(monkeypatch, meanwhile)
    with pytest.raises(StorageFailed):
        await accepted(services, numbered(2), "k")
    assert {each.task.route for each in answered} == {"lane" if on_lane else "degraded"}
    assert await accepted(services, numbered(2), "k") == answered
    assert [(each.task.status, each.task.promised) for each in answered] == [(TaskStatus.PENDING, True)] * 2


@pytest.mark.parametrize("on_lane", [False, True], ids=["degraded", "lane"])
async def test_what_an_equal_batch_takes_back_is_made_anew(
    services: Services, monkeypatch: pytest.MonkeyPatch, on_lane: bool
) -> None:
    """This batch had joined the first task, and gets another one in its answer."""
    if on_lane:
        await report_lane(services)

    async def joined() -> list[Snapshot]:
        assert tasks == []
        tasks.extend(await accepted(services, numbered(2), "k"))
        return tasks

    tasks: list[Snapshot] = []
    joining: list[asyncio.Task[list[Snapshot]]] = []
    it_placed, it_may_go_on = asyncio.Event(), asyncio.Event()

    async def the_other_places() -> None:
        if not joining:  # the first batch, which is to fail when the other has joined it
            joining.append(asyncio.create_task(joined()))
            await it_placed.wait()
            raise StorageFailed
        it_placed.set()
        await it_may_go_on.wait()

    before_the_second(monkeypatch, the_other_places, times=2)
    with pytest.raises(StorageFailed):
        await accepted(services, numbered(2), "k")
    it_may_go_on.set()
    answered = await joining[0]
    assert [(each.task.status, each.task.promised) for each in answered] == [(TaskStatus.PENDING, True)] * 2
    assert await accepted(services, numbered(2), "k") == answered


async def report_lane(services: Services) -> None:
    """From now on a lane of phr00t seems to be warm."""
    report = msgspec.json.encode(lane_report("phr00t-0"))
    await services.link.entries.put(LANES, lane_key("phr00t", "phr00t-0"), report)
    await eventually(lambda: asyncio.sleep(0, services.lanes.route("phr00t", datetime.now(UTC))[0] == "lane"))


def before_the_second(
    monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], Awaitable[None]], *, times: int = 1
) -> None:
    """Calls *meanwhile* just before the second task of a batch is made, for the first *times* batches."""
    place, left = Admission.place, itertools.count(times, -1)

    async def disturbed(self: Admission, request: Any, sender: Any, task_id: str) -> Placed:
        if sender.key.endswith("1") and next(left) > 0:
            await meanwhile()
        return await place(self, request, sender, task_id)

    monkeypatch.setattr(Admission, "place", disturbed)


def looks_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each request of a batch, the first look for the task of its key finds nothing."""
    identify = Admission.identify
    looked = set[str | None]()

    async def nothing_yet(self: Admission, request: Any, sender: Any) -> tuple[str, Snapshot | None]:
        if sender.key in looked:
            return await identify(self, request, sender)
        looked.add(sender.key)
        return keyed_task_id(sender.caller, sender.key, 0), None

    monkeypatch.setattr(Admission, "identify", nothing_yet)
