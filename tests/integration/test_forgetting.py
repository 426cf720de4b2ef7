"""A caller has a task forgotten, at once or when the task's own time is over: nothing of it is left, whichever process
is killed meanwhile (ADR 0049)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from contracts.settings import Catalog
from contracts.tasks import GenerationTask, encode_task
from contracts.topology import DELIVERIES, TASKS, bucket_stream, bucket_subject
from contracts.webhooks import WebhookDelivery, delivery_id, encode_entry, requests_id
from gateway.services import Services
from ops.nats.link import NatsLink
from tests.integration.test_http_generate import problem
from tests.integration.test_retention import done_task, store
from tests.integration.test_task_feed import page
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess, provisioned_gateway
from tests.kit.gateway_parts import services_on
from tests.kit.patient import connected
from tests.kit.played import finished
from tests.kit.records import pending_task
from tests.kit.support import KEEP_S as GATEWAYS_KEEP_S
from tests.kit.support import NatsServer, eventually

KEEP_S = 300.0
# A gateway looks four times in this time.
SHORT_KEEP = "40s"


async def versions(link: NatsLink, bucket: str, key: str) -> int:
    """How many messages of *key* the stream of *bucket* holds."""
    subject = bucket_subject(bucket, key)
    info = await js_of(link).stream_info(bucket_stream(bucket), subjects_filter=subject)
    counts: dict[str, int] = info.state.subjects or {}
    return counts.get(subject, 0)


async def test_a_task_that_has_ended_is_forgotten_for_good(
    http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink
) -> None:
    link = gateway_link
    body, keyed = {"model": "anisora", "prompt": "x"}, {"idempotency-key": "forget-me"}
    task = (await http.post("/generate", json=body, headers=keyed)).json()
    url = f"/tasks/{task['id']}"
    waits = await http.delete(f"{url}/record")
    assert (waits.status_code, problem(waits)["code"]) == (409, "task_not_ended")
    done = await finished(link, gateway, task["id"])
    assert done.video is not None
    video = gateway.artifacts / done.video.path
    assert video.exists()
    stale = await http.delete(f"{url}/record", headers={"if-match": '"1"'})
    assert (stale.status_code, video.exists()) == (412, True)
    async with page(http) as seen:
        await seen.until("open")
        assert (await http.delete(f"{url}/record")).status_code == 204
        await seen.until("gone", id=task["id"])
    assert not video.exists()
    assert await versions(link, TASKS, task["id"]) == 1  # the marker, and no older revision
    entry = await link.entries.get(TASKS, task["id"])
    assert entry is not None
    assert entry.value is None
    for method, path in (("GET", url), ("GET", f"{url}/video"), ("GET", f"{url}/events"), ("DELETE", f"{url}/record")):
        assert (await http.request(method, path)).status_code == 404, path
    assert task["id"] not in (await http.get("/tasks")).text
    # the key may be used again, and makes another task
    again = await http.post("/generate", json=body, headers=keyed)
    assert again.status_code == 202
    assert again.json()["id"] != task["id"]
    assert (await http.post("/generate", json=body, headers=keyed)).json()["id"] == again.json()["id"]
    await http.delete(f"/tasks/{again.json()['id']}")


@pytest.fixture
async def services(nats_server: NatsServer, catalog: Catalog, tmp_path: Path) -> AsyncIterator[Services]:
    async with services_on(nats_server, catalog, tmp_path) as services:
        yield services


def delivery_of(task: GenerationTask) -> WebhookDelivery:
    """The delivery of the end of *task*, which is still to be sent."""
    now, endpoint = datetime.now(UTC), requests_id(task.caller)
    return WebhookDelivery(
        id=delivery_id(task.id, "task.done", endpoint),
        caller=task.caller,
        endpoint=endpoint,
        url="http://127.0.0.1:9/videos",
        task_id=task.id,
        event="task.done",
        payload="{}",
        made_at=now,
        next_at=now,
    )


async def test_what_a_gateway_left_that_was_killed_another_one_removes(
    services: Services, nats_server: NatsServer, catalog: Catalog, tmp_path: Path
) -> None:
    """It was killed right after the deciding write, so all objects and deliveries are still there."""
    task = done_task()
    assert task.image_path is not None
    link = services.link
    revision = await link.entries.create(TASKS, task.id, encode_task(pending_task(task.id)))
    revision = await link.entries.update(TASKS, task.id, encode_task(task), revision=revision)
    delivery = delivery_of(task)
    await link.entries.create(DELIVERIES, delivery.id, encode_entry(delivery))
    files = [
        store(services, tmp_path, path, age_s=1) for path in (task.video_path, task.thumbnail_path, task.image_path)
    ]
    kept = store(services, tmp_path, "videos/0199a000-0000-7000-8000-000000000002.0.mp4", age_s=1)
    await link.entries.purge(TASKS, task.id, revision=revision)
    folder = tmp_path / "artifacts"
    other = Services(catalog=catalog, nats=nats_server.url, artifacts_dir=folder, keep_s=KEEP_S)
    async with other.running():
        assert await other.tasks.get(task.id) is None
        assert all(file.exists() for file in files)
        await other.clean()
        assert [file.exists() for file in (*files, kept)] == [False, False, False, True]
        left = await link.entries.get(DELIVERIES, delivery.id)
        assert left is not None
        assert left.value is None
        assert await versions(link, DELIVERIES, delivery.id) == 1

        async def unknown() -> bool:
            return delivery.id not in other.webhooks.deliveries

        await eventually(unknown)


async def test_a_request_says_for_how_long_within_the_operators_bound(http: httpx.AsyncClient) -> None:
    """The task shows this time. A repeated request has to name the same one, and a resubmitted request keeps it."""
    body, keyed = {"model": "anisora", "prompt": "x"}, {"idempotency-key": "keep-me"}
    beyond = await http.post("/generate", json=body | {"keep_s": int(GATEWAYS_KEEP_S) + 1})
    assert (beyond.status_code, problem(beyond)["errors"][0]["expected"]) == (
        422,
        {"minimum": 60, "maximum": int(GATEWAYS_KEEP_S)},
    )
    task = (await http.post("/generate", json=body | {"keep_s": 60}, headers=keyed)).json()
    assert task["keep_s"] == 60
    other = await http.post("/generate", json=body | {"keep_s": 61}, headers=keyed)
    assert problem(other)["code"] == "idempotency_key_reused"
    assert (await http.delete(f"/tasks/{task['id']}")).json()["keep_s"] == 60
    again = (await http.post(f"/tasks/{task['id']}/resubmit", json={})).json()
    assert again["keep_s"] == 60
    video = (await http.post("/v1/videos", json=body | {"keep_s": 90})).json()
    shown = (await http.get(f"/tasks/{video['id']}")).json()
    assert shown["keep_s"] == 90
    for each in (again["id"], video["id"]):
        await http.delete(f"/tasks/{each}")


async def test_a_task_goes_when_its_own_time_is_over_and_no_other_does(
    services: Services, nats_server: NatsServer, catalog: Catalog, tmp_path: Path
) -> None:
    """Two gateways come to it at once. Tasks without a time of their own, or whose time is not over, stay."""
    link, folder = services.link, tmp_path / "artifacts"
    base, ids = done_task(), [f"0199a000-0000-7000-8000-00000000000{number}" for number in range(3)]
    ended_at = datetime.now(UTC) - timedelta(seconds=120)
    files = {}
    for task_id, keep_s in zip(ids, (60, None, 240), strict=True):
        paths = [path.replace(base.id, task_id) for path in (base.video_path, base.thumbnail_path)]
        assert base.video is not None
        assert base.video.thumbnail is not None
        video = replace(base.video, path=paths[0], thumbnail=replace(base.video.thumbnail, path=paths[1]))
        task = replace(base, id=task_id, video=video, finished_at=ended_at, keep_s=keep_s)
        assert task.image_path is not None
        files[task_id] = [store(services, tmp_path, path, age_s=1) for path in (*paths, task.image_path)]
        revision = await link.entries.create(TASKS, task_id, encode_task(pending_task(task_id)))
        await link.entries.update(TASKS, task_id, encode_task(task), revision=revision)
        delivery = delivery_of(task)
        await link.entries.create(DELIVERIES, delivery.id, encode_entry(delivery))
    other = Services(catalog=catalog, nats=nats_server.url, artifacts_dir=folder, keep_s=KEEP_S)
    async with other.running():

        async def known() -> bool:
            return all(each.tasks.index.get(task_id) for each in (services, other) for task_id in ids)

        await eventually(known)
        await asyncio.gather(services.clean(), other.clean())
        assert [await each.tasks.get(ids[0]) for each in (services, other)] == [None, None]
        for task_id in ids[1:]:
            assert await other.tasks.get(task_id) is not None
    assert {task_id: [file.exists() for file in found] for task_id, found in files.items()} == {
        ids[0]: [False] * 3,
        ids[1]: [True] * 3,
        ids[2]: [True] * 3,
    }
    assert await versions(link, TASKS, ids[0]) == 1  # the marker, and no older revision
    assert [await versions(link, TASKS, task_id) for task_id in ids[1:]] == [2, 2]
    entries = [
        await link.entries.get(DELIVERIES, delivery_id(each, "task.done", requests_id("anonymous"))) for each in ids
    ]
    assert [each is not None and each.value is not None for each in entries] == [False, True, True]


@pytest.fixture
def short_lived(tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway that looks for leftovers every few seconds."""
    with provisioned_gateway(tmp_path, options=("--keep", SHORT_KEEP)) as process:
        yield process
    process.nats.stop()


async def test_a_gateway_that_is_killed_while_it_forgets_leaves_a_task_whole_or_gone(
    short_lived: GatewayProcess,
) -> None:
    gateway = short_lived
    link = await connected(gateway.nats.url)
    body = {"model": "phr00t", "prompt": "x"}
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
        tasks = []
        for _ in range(12):
            made = await http.post("/generate", json=body, headers={"prefer": "respond-async"})
            tasks.append(await finished(link, gateway, made.json()["id"]))
        asking = [asyncio.create_task(http.delete(f"/tasks/{task.id}/record")) for task in tasks]

        async def begun() -> bool:
            entries = [await link.entries.get(TASKS, task.id) for task in tasks]
            return any(entry is not None and entry.value is None for entry in entries)

        await eventually(begun)
        gateway.kill()
        await asyncio.gather(*asking, return_exceptions=True)
        await asyncio.to_thread(gateway.start, "--keep", SHORT_KEEP)

        async def whole_or_gone(task: GenerationTask) -> bool:
            assert task.video is not None
            answer = await http.get(f"/tasks/{task.id}/video")
            there = (gateway.artifacts / task.video.path).exists()
            return (answer.status_code, there) in ((200, True), (404, False))

        for task in tasks:
            await eventually(partial(whole_or_gone, task), within_s=60)
    await link.close()
