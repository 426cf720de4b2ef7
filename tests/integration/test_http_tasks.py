"""`/tasks` over real HTTP: look, wait, follow, list, cancel, download."""

import asyncio
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate

from contracts import lifecycle
from contracts.tasks import (
    FailureCode,
    GenerationTask,
    MemoryReading,
    Progress,
    VideoFile,
    decode_task,
    encode_task,
)
from contracts.topology import TASKS, lane_stream
from ops.nats_link import NatsLink
from tests.integration.conftest import GatewayProcess
from tests.integration.test_http_generate import problem

UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"
CONTENT = bytes(range(256)) * 40


async def submitted(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/generate", json={"model": "anisora", "prompt": "x"} | fields)
    assert response.status_code == 202
    task: dict[str, Any] = response.json()
    return task


async def record(link: NatsLink, task_id: str) -> tuple[GenerationTask, int]:
    entry = await link.get(TASKS, task_id)
    assert entry is not None
    assert entry.value is not None
    return decode_task(entry.value), entry.revision


async def claimed(link: NatsLink, task_id: str) -> GenerationTask:
    """Claims the task by hand, as a worker does."""
    task, revision = await record(link, task_id)
    task = lifecycle.claim(task, owner="hand", worker="anisora-0", lease_s=600, now=datetime.now(UTC))
    await link.update(TASKS, task_id, encode_task(task), revision=revision)
    return task


async def finished(link: NatsLink, gateway: GatewayProcess, task_id: str) -> GenerationTask:
    """Claims and finishes the task, with CONTENT as its video."""
    await claimed(link, task_id)
    task, revision = await record(link, task_id)
    path = gateway.artifacts / task.video_path
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CONTENT)
    video = VideoFile(
        path=task.video_path,
        bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        width=96,
        height=64,
        frames=17,
        fps=16,
    )
    done = lifecycle.finish(task, video=video, memory=MemoryReading(rss_bytes=1), now=datetime.now(UTC))
    await link.update(TASKS, task_id, encode_task(done), revision=revision)
    return done


async def test_an_unknown_task_is_404(http: httpx.AsyncClient) -> None:
    for path in (UNKNOWN, "not-an-id", "a.b", "%2e%2e", "*", ">"):
        response = await http.get(f"/tasks/{path}")
        assert (response.status_code, problem(response)["code"]) == (404, "task_not_found"), path
    for suffix in ("/events", "/video"):
        assert (await http.get(f"/tasks/{UNKNOWN}{suffix}")).status_code == 404
    assert (await http.delete(f"/tasks/{UNKNOWN}")).status_code == 404


async def test_waiting_for_the_end(http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink) -> None:
    task = await submitted(http)
    waiting = asyncio.create_task(http.get(f"/tasks/{task['id']}?wait=30"))
    preferring = asyncio.create_task(http.get(f"/tasks/{task['id']}", headers={"prefer": "wait=30"}))
    await finished(gateway_link, gateway, task["id"])
    for answer in await asyncio.gather(waiting, preferring):
        assert (answer.status_code, answer.json()["status"]) == (200, "done")
    assert (await preferring).headers["preference-applied"] == "wait=30"


async def test_waiting_for_a_change(http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    task = await submitted(http)
    seen = (await http.get(f"/tasks/{task['id']}")).headers["etag"]
    same = await http.get(f"/tasks/{task['id']}?wait=0.05", headers={"if-none-match": seen})
    assert (same.status_code, same.content) == (304, b"")
    waiting = asyncio.create_task(http.get(f"/tasks/{task['id']}?wait=30", headers={"if-none-match": seen}))
    await claimed(gateway_link, task["id"])
    answer = await waiting
    assert (answer.status_code, answer.json()["status"]) == (200, "processing")
    assert answer.headers["etag"] != seen


async def test_a_wait_that_ends_without_news_answers_the_task(http: httpx.AsyncClient) -> None:
    task = await submitted(http)
    answer = await http.get(f"/tasks/{task['id']}?wait=0.05")
    assert (answer.status_code, answer.json()["status"]) == (200, "pending")


@pytest.mark.parametrize("wait", ["61", "-1", "nan", "x"])
async def test_a_wait_that_is_none(wait: str, http: httpx.AsyncClient) -> None:
    task = await submitted(http)
    response = await http.get(f"/tasks/{task['id']}?wait={wait}")
    assert (response.status_code, problem(response)["code"]) == (400, "invalid_query")


async def test_following_a_task(http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink) -> None:
    task = await submitted(http)
    seen: list[tuple[str, str]] = []
    async with http.stream("GET", f"/tasks/{task['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        last_id = ""
        async for line in stream.aiter_lines():
            if line.startswith("id: "):
                last_id = line.removeprefix("id: ")
            if line.startswith("data: "):
                seen.append((last_id, json.loads(line.removeprefix("data: "))["status"]))
                if len(seen) == 1:
                    await finished(gateway_link, gateway, task["id"])
    assert [status for _, status in seen] == ["pending", "processing", "done"]
    again = await http.get(f"/tasks/{task['id']}/events", headers={"last-event-id": last_id})
    assert again.status_code == 204


async def test_cancelling_a_queued_task_takes_its_message_away(http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    task = await submitted(http)
    before = (await gateway_link.js.stream_info(lane_stream("anisora"))).state.messages
    answer = await http.delete(f"/tasks/{task['id']}")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["error"]["code"]) == ("failed", "cancelled")
    assert (await gateway_link.js.stream_info(lane_stream("anisora"))).state.messages == before - 1
    again = await http.delete(f"/tasks/{task['id']}")
    assert (again.status_code, again.json()) == (200, answer.json())


async def test_cancelling_loses_no_race(
    http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink
) -> None:
    """A task that ended meanwhile is answered as it ended."""
    task = await submitted(http)
    await finished(gateway_link, gateway, task["id"])
    answer = await http.delete(f"/tasks/{task['id']}")
    assert (answer.status_code, answer.json()["status"]) == (200, "done")


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


@pytest.mark.parametrize("query", ["cursor=x", "limit=0", "limit=101", "status=lost", "model=sora"])
async def test_a_listing_that_cannot_be(query: str, http: httpx.AsyncClient) -> None:
    response = await http.get(f"/tasks?{query}")
    assert (response.status_code, problem(response)["code"]) == (400, "invalid_query")


async def test_the_video(http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink) -> None:
    task = await submitted(http)
    url = f"/tasks/{task['id']}/video"
    early = await http.get(url)
    assert (early.status_code, problem(early)["code"]) == (404, "video_not_ready")
    done = await finished(gateway_link, gateway, task["id"])
    await http.get(f"/tasks/{task['id']}?wait=10")
    whole = await http.get(url)
    assert (whole.status_code, whole.headers["content-type"], whole.content) == (200, "video/mp4", CONTENT)
    etag = whole.headers["etag"]
    assert done.video is not None
    assert etag == f'"{done.video.sha256}"'
    head = await http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert {name: head.headers[name] for name in ("content-length", "etag", "accept-ranges", "content-type")} == {
        name: whole.headers[name] for name in ("content-length", "etag", "accept-ranges", "content-type")
    }
    part = await http.get(url, headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, CONTENT[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(CONTENT)}"
    tail = await http.get(url, headers={"range": "bytes=-5", "if-range": etag})
    assert (tail.status_code, tail.content) == (206, CONTENT[-5:])
    other = await http.get(url, headers={"range": "bytes=-5", "if-range": '"other"'})
    assert (other.status_code, len(other.content)) == (200, len(CONTENT))
    beyond = await http.get(url, headers={"range": f"bytes={len(CONTENT)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(CONTENT)}")
    known = await http.get(url, headers={"if-none-match": etag})
    assert (known.status_code, known.content) == (304, b"")
    (gateway.artifacts / done.video.path).unlink()
    gone = await http.get(url)
    assert (gone.status_code, problem(gone)["code"]) == (410, "video_expired")
    assert (await http.head(url)).status_code == 410


async def test_the_video_of_a_failed_task(http: httpx.AsyncClient) -> None:
    task = await submitted(http)
    await http.delete(f"/tasks/{task['id']}")
    response = await http.get(f"/tasks/{task['id']}/video")
    assert (response.status_code, problem(response)["code"]) == (404, "video_failed")


async def test_a_failed_task_keeps_its_reason(http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    task = await submitted(http)
    await claimed(gateway_link, task["id"])
    current, revision = await record(gateway_link, task["id"])
    failed = lifecycle.fail(
        lifecycle.renew(current, progress=Progress(step=3, steps=8), lease_s=60, now=datetime.now(UTC)),
        code=FailureCode.OUT_OF_MEMORY,
        message="the card is full",
        now=datetime.now(UTC),
    )
    await gateway_link.update(TASKS, task["id"], encode_task(failed), revision=revision)
    answer = (await http.get(f"/tasks/{task['id']}?wait=10")).json()
    assert (answer["error"], answer["progress"]) == (
        {"code": "out_of_memory", "message": "the card is full"},
        {"step": 3, "steps": 8},
    )


async def test_settings_liveness_and_readiness(http: httpx.AsyncClient) -> None:
    settings = (await http.get("/settings")).json()
    models = {model["name"]: model["constraints"] for model in settings["models"]}
    assert (models["anisora"]["steps"]["fixed"], models["phr00t"]["steps"]["fixed"]) == (8, 4)
    assert models["phr00t"]["cfg"]["fixed"] == 1.0
    assert (await http.get("/healthz")).status_code == 200
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)


async def test_the_document_of_the_running_gateway_is_valid_and_whole(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    validate(document)
    assert set(document["paths"]) >= {
        "/generate",
        "/tasks",
        "/tasks/{task_id}",
        "/tasks/{task_id}/events",
        "/tasks/{task_id}/video",
        "/settings",
        "/healthz",
        "/readyz",
    }
    video = document["paths"]["/tasks/{task_id}/video"]
    assert {"200", "206", "304", "404", "410", "416", "503"} <= set(video["get"]["responses"])
    assert set(video) >= {"get", "head"}
    page = await http.get("/docs")
    assert (page.status_code, "swagger" in page.text.lower()) == (200, True)
