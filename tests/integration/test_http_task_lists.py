"""Many tasks over real HTTP: lists, filters, places in the queues, and who would take the next one."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest

from contracts import lifecycle
from contracts.lanes import LaneState, Leadership
from contracts.tasks import FailureCode, GenerationTask, encode_task
from contracts.topology import LEADER, LEADER_KEY, TASKS
from ops.nats.link import NatsLink
from tests.integration.test_http_generate import problem
from tests.kit.gateway import report_lane
from tests.kit.played import claimed, degraded_task, submitted
from tests.kit.support import eventually


async def test_a_place_in_the_queue_is_in_the_tag(http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    first = await submitted(http)
    task = await submitted(http)
    url = f"/tasks/{task['id']}"
    before = await http.get(url)
    assert (await http.get(url, headers={"if-none-match": f'"x", W/{before.headers["etag"]}'})).status_code == 304
    await http.delete(f"/tasks/{first['id']}")
    after = await http.get(url, headers={"if-none-match": before.headers["etag"]})
    assert (after.status_code, after.json()["queue"]["position"]) == (200, before.json()["queue"]["position"] - 1)
    assert after.headers["etag"] != before.headers["etag"]
    # the gateway answers a waiting client when the task changes; a new place shows only when the wait is over
    waited = await http.get(f"{url}?wait=0.05", headers={"if-none-match": f'"1", {before.headers["etag"]}'})
    assert (waited.status_code, waited.headers["etag"]) == (200, after.headers["etag"])
    waiting = asyncio.create_task(
        http.get(f"{url}?wait=30", headers={"if-none-match": f'"1", {after.headers["etag"]}'})
    )
    await claimed(gateway_link, task["id"])
    assert (await waiting).json()["status"] == "processing"


async def test_listing_pages_newest_first(http: httpx.AsyncClient) -> None:
    made = [
        (await submitted(http, model=model))["id"] for model in ("phr00t", "anisora", "phr00t", "phr00t", "anisora")
    ]
    found: list[str] = []
    cursor = None
    while len(found) < 4:
        query = {"limit": "2", "model": "phr00t-aio", "status": "pending"} | ({"cursor": cursor} if cursor else {})
        page = (await http.get("/tasks", params=query)).json()
        assert {(task["model"], task["status"]) for task in page["tasks"]} == {("phr00t", "pending")}
        found += [task["id"] for task in page["tasks"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found[:3] == [made[3], made[2], made[0]]


async def test_a_filter_takes_several_values(http: httpx.AsyncClient) -> None:
    pending = await submitted(http)
    failed = await submitted(http, model="phr00t")
    await http.delete(f"/tasks/{failed['id']}")

    async def newest(query: str) -> list[str]:
        return [task["id"] for task in (await http.get(f"/tasks?limit=2&{query}")).json()["tasks"]]

    both = [failed["id"], pending["id"]]
    for query in (
        "status=pending&status=failed",
        "status=failed,%20pending",
        "model=PHR00T&model=Index-AniSora",
        "model=phr00t,anisora&status=failed&status=pending",
    ):
        assert await newest(query) == both, query
    assert failed["id"] in await newest("model=RAPID-AIO")
    assert pending["id"] not in await newest("status=failed,done")


async def test_labels_and_time_filter_page_by_page(http: httpx.AsyncClient) -> None:
    """The task shows its labels, which filter it. Adjoining spans list each task once. A cursor keeps the filters."""
    project = f"project:{uuid.uuid4()}"
    key, _, value = project.partition(":")
    made = [
        await submitted(http, labels={key: value, "shot": str(number % 2)} if number < 5 else {"shot": "1"})
        for number in range(6)
    ]
    assert (made[1]["labels"], made[5]["labels"]) == ({key: value, "shot": "1"}, {"shot": "1"})

    async def listed(*query: tuple[str, str]) -> list[str]:
        found: list[str] = []
        cursor: list[tuple[str, str]] = []
        while True:
            page = (await http.get("/tasks", params=[("limit", "2"), *query, *cursor])).json()
            found += [task["id"] for task in page["tasks"]]
            if page["next_cursor"] is None:
                return found
            cursor = [("cursor", page["next_cursor"])]

    ids = [task["id"] for task in made]
    assert await listed(("label", project)) == ids[4::-1]
    assert await listed(("label", project), ("label", "shot:1")) == [ids[3], ids[1]]
    assert await listed(("label", project), ("label", "shot:2")) == []
    middle = made[2]["created_at"]
    assert await listed(("label", project), ("created_before", middle)) == ids[1::-1]
    assert await listed(("label", project), ("created_after", middle)) == ids[4:1:-1]
    first_to_last = ("created_after", made[1]["created_at"]), ("created_before", made[4]["created_at"])
    assert await listed(("label", project), *first_to_last) == [ids[3], ids[2], ids[1]]
    again = await http.post(f"/tasks/{ids[0]}/resubmit", json={})
    assert again.json()["code"] == "task_not_ended"
    await http.delete(f"/tasks/{ids[0]}")
    again = await http.post(f"/tasks/{ids[0]}/resubmit", json={}, headers={"content-type": "application/json"})
    assert again.json()["labels"] == made[0]["labels"]


async def test_a_queued_task_shows_its_place_everywhere(http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    first = await submitted(http)
    task = await submitted(http)
    place = {"position": first["queue"]["position"] + 1, "expected_wait_s": task["queue"]["expected_wait_s"]}
    assert task["queue"] == place
    url = f"/tasks/{task['id']}"
    assert (await http.get(url)).json()["queue"]["position"] == place["position"]
    assert (await http.get(f"{url}?wait=0.05")).json()["queue"]["position"] == place["position"]
    listed = (await http.get("/tasks", params={"limit": "1"})).json()["tasks"][0]
    assert (listed["id"], listed["queue"]["position"]) == (task["id"], place["position"])
    async with http.stream("GET", f"{url}/events") as stream:
        data = [json.loads(line[6:]) async for line in _until_data(stream)]
    assert data[0]["queue"]["position"] == place["position"]
    cancelled = (await http.delete(f"/tasks/{first['id']}")).json()
    assert cancelled["queue"] is None
    waiting = await http.get(url)
    assert waiting.json()["queue"]["position"] == place["position"] - 1
    await claimed(gateway_link, task["id"])
    running = (await http.get(f"{url}?wait=60", headers={"if-none-match": waiting.headers["etag"]})).json()
    assert (running["status"], running["queue"]) == ("processing", None)


async def _until_data(stream: httpx.Response) -> AsyncIterator[str]:
    """The first event's data line, and no more."""
    async for line in stream.aiter_lines():
        if line.startswith("data: "):
            yield line
            return


async def test_the_expected_wait_comes_from_measured_service_times(
    http: httpx.AsyncClient, gateway_link: NatsLink
) -> None:
    """One task took 10 s, one has run for 4 s, and two wait."""
    now = datetime.now(UTC)

    def claim(task: GenerationTask, at: datetime) -> GenerationTask:
        return lifecycle.claim(task, owner="hand", worker="degraded-0", lease_s=600, now=at)

    ran = claim(degraded_task(now - timedelta(seconds=20)), now - timedelta(seconds=18))
    ran = lifecycle.fail(ran, code=FailureCode.INFERENCE_FAILED, message="", now=now - timedelta(seconds=8))
    running = claim(degraded_task(now - timedelta(seconds=6)), now - timedelta(seconds=4))
    queue = [
        degraded_task(now - timedelta(seconds=age_s), model=model) for age_s, model in ((3, "phr00t"), (2, "anisora"))
    ]
    for task in (ran, running, *queue):
        await gateway_link.entries.create(TASKS, task.id, encode_task(task))

    async def shown() -> dict[str, dict[str, Any]] | None:
        tasks = {task["id"]: task for task in (await http.get("/tasks", params={"limit": "100"})).json()["tasks"]}
        return tasks if queue[-1].id in tasks else None

    tasks = await eventually(shown)
    assert tasks is not None
    first, second = (tasks[task.id]["queue"] for task in queue)
    assert (first["position"], second["position"]) == (1, 2)
    assert 0 <= first["expected_wait_s"] <= 6
    assert second["expected_wait_s"] - first["expected_wait_s"] == pytest.approx(10, abs=0.11)
    assert tasks[running.id]["queue"] is None


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("cursor=x", "cursor: use next_cursor"),
        ("limit=0", "limit: expected an integer from 1 to 100"),
        ("limit=101", "limit: expected an integer from 1 to 100"),
        ("limit=ten", "limit: expected an integer from 1 to 100"),
        ("limit=", "limit: expected an integer from 1 to 100"),
        ("limit=1&limit=2", "limit: 2 times in the query; send it once"),
        ("status=lost", "status: expected pending, processing, done or failed"),
        ("status=done,lost", "status: expected pending, processing, done or failed"),
        ("status=", "status: expected pending, processing, done or failed"),
        ("model=sora", "model: no model has this name; expected anisora or phr00t"),
        ("model=anisora,", "model: no model has this name; expected anisora or phr00t"),
        (
            "state=done",
            "'state': no such query parameter; this path takes created_after, created_before, cursor, label, limit, ",
        ),
        ("label=project", "label: expected KEY:VALUE"),
        ("label=a:b&label=two%20words:x", "label: expected KEY:VALUE"),
        ("created_after=yesterday", "created_after: expected a moment with a time zone (RFC 3339)"),
        ("created_before=2026-05-01T12:00:00", "created_before: expected a moment with a time zone (RFC 3339)"),
        ("created_before=2026-05-01T12:00:00+02:00", "a + is written %2B"),
    ],
)
async def test_an_impossible_listing_is_refused(query: str, message: str, http: httpx.AsyncClient) -> None:
    response = await http.get(f"/tasks?{query}")
    assert (response.status_code, problem(response)["code"]) == (400, "invalid_query")
    assert message in response.json()["detail"]


async def test_settings_liveness_and_readiness(http: httpx.AsyncClient) -> None:
    settings = (await http.get("/settings")).json()
    models = {model["name"]: model["constraints"] for model in settings["models"]}
    assert (models["anisora"]["steps"]["fixed"], models["phr00t"]["steps"]["fixed"]) == (8, 4)
    assert models["phr00t"]["cfg"]["fixed"] == 1.0
    assert (await http.get("/healthz")).status_code == 200
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)


async def test_a_model_is_ready_on_a_lane_or_on_the_degraded_worker(
    http: httpx.AsyncClient, gateway_link: NatsLink
) -> None:
    async def readiness() -> dict[str, Any]:
        response = await http.get("/readyz")
        answer: dict[str, Any] = response.json()
        assert response.status_code == (200 if answer["ready"] else 503)
        return answer

    async def becomes(degraded_worker: bool, **warm: bool) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            answer = await readiness()
            models = {name: model["warm"] for name, model in answer["models"].items()}
            return answer if (answer["degraded_worker"], models) == (degraded_worker, warm) else None

        found = await eventually(look)
        assert found is not None
        return found

    def ready(answer: dict[str, Any]) -> dict[str, bool]:
        return {name: model["ready"] for name, model in answer["models"].items()}

    lanes_only = await becomes(False, anisora=True, phr00t=True)
    assert (lanes_only["ready"], ready(lanes_only)) == (True, {"anisora": True, "phr00t": True})
    await report_lane(gateway_link, "phr00t", LaneState.LOADING)
    without = await becomes(False, anisora=True, phr00t=False)
    assert (without["ready"], ready(without)) == (False, {"anisora": True, "phr00t": False})
    assert without["models"]["phr00t"]["lanes"] == ["loading"]
    leader = Leadership(worker="degraded-0", owner="nonce", slot="cpu-2", pid=1, since=datetime.now(UTC))
    revision = await gateway_link.entries.update(LEADER, LEADER_KEY, msgspec.json.encode(leader), revision=0, ttl_s=600)
    both = await becomes(True, anisora=True, phr00t=False)
    assert (both["ready"], ready(both)) == (True, {"anisora": True, "phr00t": True})
    await gateway_link.entries.delete(LEADER, LEADER_KEY, revision=revision)
    await becomes(False, anisora=True, phr00t=False)
