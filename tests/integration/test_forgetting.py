"""A caller has a task forgotten: nothing of it is left, whoever is killed meanwhile (ADR 0049)."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from contracts.settings import Catalog
from contracts.tasks import GenerationTask, encode_task
from contracts.topology import DELIVERIES, TASKS, bucket_stream, bucket_subject
from contracts.webhooks import WebhookDelivery, delivery_id, encode_entry, requests_id
from gateway.services import Services
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.integration.test_http_generate import problem
from tests.integration.test_http_tasks import finished
from tests.integration.test_retention import done_task, store
from tests.integration.test_task_feed import page
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess
from tests.kit.records import pending_task
from tests.kit.support import NatsServer, eventually

KEEP_S = 300.0


async def versions(link: NatsLink, bucket: str, key: str) -> int:
    """How many messages the stream of *bucket* holds of *key*."""
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
    assert await versions(link, TASKS, task["id"]) == 1  # the marker, and nothing of what was there
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
    link = await NatsLink.connect(nats_server.url, name="test")
    await provision(link, wanted(catalog, keep_s=KEEP_S))
    await link.close()
    made = Services(catalog=catalog, nats=nats_server.url, artifacts_dir=tmp_path / "artifacts", keep_s=KEEP_S)
    async with made.running():
        yield made


def told_of(task: GenerationTask) -> WebhookDelivery:
    """The delivery of its end, which is still to be sent."""
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
    """It was killed right behind the write that decides: object by object and delivery by delivery, all is left."""
    task = done_task()
    assert task.image_path is not None
    link = services.link
    revision = await link.entries.create(TASKS, task.id, encode_task(pending_task(task.id)))
    revision = await link.entries.update(TASKS, task.id, encode_task(task), revision=revision)
    delivery = told_of(task)
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
