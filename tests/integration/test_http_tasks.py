"""`/tasks` over real HTTP: read, wait, follow, list, cancel, download."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from openapi_spec_validator import validate

from contracts import lifecycle
from contracts.memory import SwapReceipt
from contracts.progress import StepsDone
from contracts.tasks import FailureCode, encode_task
from contracts.topology import TASKS, lane_stream
from ops.nats.link import NatsLink
from tests.integration.test_http_generate import problem
from tests.kit.behind import js_of
from tests.kit.event_source import EventSource
from tests.kit.gateway import GatewayProcess
from tests.kit.played import CONTENT, UNKNOWN, claimed, degraded_task, finished, record, submitted
from tests.kit.support import eventually


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
    lines = [("prefer", "return=minimal, respond-async"), ("prefer", 'handling=lenient, wait="30"')]
    preferring = asyncio.create_task(http.get(f"/tasks/{task['id']}", headers=lines))
    await finished(gateway_link, gateway, task["id"])
    for answer in await asyncio.gather(waiting, preferring):
        assert (answer.status_code, answer.json()["status"]) == (200, "done")
    assert (await preferring).headers["preference-applied"] == "wait=30"


async def test_whoever_hangs_up_while_the_end_is_awaited_takes_nothing_back(
    http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink
) -> None:
    body, key = {"model": "anisora", "prompt": "x"}, {"idempotency-key": "hangs-up"}
    waiting = asyncio.create_task(http.post("/generate", json=body, headers=key | {"prefer": "wait"}))

    async def accepted() -> str | None:
        tasks = (await http.get("/tasks", params={"limit": 1})).json()["tasks"]
        again = await http.post("/generate", json=body, headers=key | {"prefer": "respond-async"})
        return again.json()["id"] if tasks and again.json()["id"] == tasks[0]["id"] else None

    task_id = await eventually(accepted)
    assert task_id is not None
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait({waiting})
    await finished(gateway_link, gateway, task_id)
    assert (await http.get(f"/tasks/{task_id}?wait=60")).json()["status"] == "done"


async def test_a_file_is_sent_as_plain_bytes_to_those_who_ask_for_them(
    http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink
) -> None:
    """As the OpenAPI document says. All other clients get a video."""
    task = await submitted(http)
    await finished(gateway_link, gateway, task["id"])
    assert (await http.get(f"/tasks/{task['id']}?wait=60")).json()["status"] == "done"
    for method in ("GET", "HEAD"):
        for accept, sent in (
            ("*/*", "video/mp4"),
            ("application/json", "video/mp4"),
            ("video/*;q=0.5, application/octet-stream;q=0.4", "video/mp4"),
            ("application/octet-stream", "application/octet-stream"),
        ):
            answer = await http.request(method, f"/tasks/{task['id']}/video", headers={"accept": accept})
            assert (answer.status_code, answer.headers["content-type"]) == (200, sent), accept
            assert (answer.content, answer.headers["vary"]) == (CONTENT if method == "GET" else b"", "Accept")
            assert answer.headers["content-length"] == str(len(CONTENT))


async def test_every_answer_about_a_task_has_one_shape(
    http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink
) -> None:
    """With a wait or without, ended or not, alone, in a list or on a stream."""
    body, key = {"model": "anisora", "prompt": "x"}, {"idempotency-key": "one-shape"}
    async with http.stream("GET", "/tasks/events") as stream:
        pieces = stream.aiter_bytes()
        source = EventSource()
        source.read(await anext(pieces))
        at_once = await http.post("/generate", json=body, headers=key | {"prefer": "respond-async"})
        task_id = at_once.json()["id"]
        waited = await http.post("/generate", json=body, headers=key | {"prefer": "wait=0"})
        waiting = asyncio.create_task(http.post("/generate", json=body, headers=key | {"prefer": "wait"}))
        await finished(gateway_link, gateway, task_id)
        ended = await waiting
        assert (at_once.status_code, waited.status_code, ended.status_code) == (202, 202, 200)
        assert ended.headers["preference-applied"] == "wait=60"
        streamed: list[dict[str, Any]] = []
        while not any(each["status"] == "done" for each in streamed):
            streamed += [json.loads(each.data) for each in source.read(await anext(pieces)) if each.name == "task"]
    async with http.stream("GET", f"/tasks/{task_id}/events") as stream:
        (event,) = EventSource().read(await stream.aread())
    cancelled = await http.delete(f"/tasks/{(await submitted(http))['id']}")
    found = [
        *(answer.json() for answer in (at_once, waited, ended, cancelled)),
        (await http.get(f"/tasks/{task_id}")).json(),
        *(await http.get("/tasks")).json()["tasks"],
        *streamed,
        json.loads(event.data),
    ]
    assert {each["status"] for each in found} >= {"pending", "done", "failed"}
    assert len({(*each,) for each in found}) == 1  # the same keys, in the same order
    assert len({(*each["links"],) for each in found}) == 1


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
async def test_a_wait_that_is_no_number_is_refused(wait: str, http: httpx.AsyncClient) -> None:
    task = await submitted(http)
    response = await http.get(f"/tasks/{task['id']}?wait={wait}")
    assert (response.status_code, problem(response)["code"]) == (400, "invalid_query")
    assert response.json()["detail"] == "wait: expected a number from 0 to 60"


async def test_cancelling_a_queued_task_takes_its_message_away(http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    task = await submitted(http)
    before = (await js_of(gateway_link).stream_info(lane_stream("anisora"))).state.messages
    answer = await http.delete(f"/tasks/{task['id']}")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["error"]["code"]) == ("failed", "cancelled")
    assert (await js_of(gateway_link).stream_info(lane_stream("anisora"))).state.messages == before - 1
    again = await http.delete(f"/tasks/{task['id']}")
    assert (again.status_code, again.json()) == (200, answer.json())


async def test_cancelling_only_what_was_seen(
    http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink
) -> None:
    """`If-Match`: the revision of a task counts, and not its place."""
    first = await submitted(http)
    accepted = await http.post("/generate", json={"model": "anisora", "prompt": "x"})
    url, tag = accepted.headers["location"], accepted.headers["etag"]
    weak, others = f"W/{tag}", '"999999", "888888-1"'
    for refused in ({"if-match": weak}, {"if-match": others}, {"if-match": '""'}, {"if-none-match": "*"}):
        answer = await http.delete(url, headers=refused)
        assert (answer.status_code, problem(answer)["code"]) == (412, "precondition_failed"), refused
        assert (await http.get(url)).json()["status"] == "pending"
    await http.delete(f"/tasks/{first['id']}", headers={"if-match": "*"})
    assert (await http.get(url)).headers["etag"] != tag  # the task moved up
    cancelled = await http.delete(url, headers={"if-match": f"{others}, {tag}"})
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "failed")
    again = await http.get(url)
    assert again.headers["etag"] == cancelled.headers["etag"]
    stale = await http.delete(url, headers={"if-match": tag})
    assert (stale.status_code, stale.headers["etag"]) == (412, cancelled.headers["etag"])


async def test_head_is_get_without_its_body(
    http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink
) -> None:
    task = await submitted(http)
    await finished(gateway_link, gateway, task["id"])
    url = f"/tasks/{task['id']}"
    tag = (await http.get(f"{url}?wait=60")).headers["etag"]
    document = (await http.get("/openapi.json")).json()
    paths = [path for path, item in document["paths"].items() if "get" in item]
    assert len(paths) > 12
    asked: list[tuple[str, dict[str, str]]]
    asked = [(path.replace("{task_id}", task["id"]).replace("{model}", "anisora"), {}) for path in paths]
    asked += [
        (url, {"if-none-match": tag}),
        (f"{url}/video", {"if-none-match": "*"}),
        (f"{url}/video", {"if-match": '"x"'}),
        (f"{url}/events", {"last-event-id": tag.strip('"')}),
        (f"/tasks/{UNKNOWN}/events", {}),
        ("/tasks?limit=101", {}),
    ]
    for path, headers in asked:
        async with http.stream("GET", path, headers=headers) as whole:
            pass
        head = await http.head(path, headers=headers)
        assert (head.status_code, head.content) == (whole.status_code, b""), path
        differs = {"date", "transfer-encoding", "x-request-id"}
        if path.startswith(("/metrics", "/admin/", "/tasks?")) or path == "/tasks":  # ages, and others' tasks
            differs.add("content-length")
        assert {name: value for name, value in head.headers.items() if name not in differs} == {
            name: value for name, value in whole.headers.items() if name not in differs
        }, path


async def test_long_answers_are_compressed(http: httpx.AsyncClient) -> None:
    task = await submitted(http, prompt="a paper boat " * 150)
    url = f"/tasks/{task['id']}"
    plain, zipped = [
        await http.get(url, headers={"accept-encoding": each}) for each in ("identity", "br;q=1, gzip;q=0.5")
    ]
    assert (plain.headers.get("content-encoding"), zipped.headers["content-encoding"]) == (None, "gzip")
    assert plain.json() == zipped.json()
    assert plain.headers["vary"] == zipped.headers["vary"] == "Accept-Encoding"
    assert plain.headers["etag"] != zipped.headers["etag"]
    known = {"if-none-match": zipped.headers["etag"]}
    assert (await http.get(url, headers=known)).status_code == 304
    assert (await http.get(url, headers=known | {"accept-encoding": "identity"})).status_code == 200
    assert (await http.delete(url, headers={"if-match": zipped.headers["etag"]})).status_code == 200


async def test_cancelling_loses_no_race(
    http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink
) -> None:
    """For a task that ended meanwhile, the answer shows that end."""
    task = await submitted(http)
    await finished(gateway_link, gateway, task["id"])
    answer = await http.delete(f"/tasks/{task['id']}")
    assert (answer.status_code, answer.json()["status"]) == (200, "done")


async def test_the_swap_receipt_is_shown(http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    now = datetime.now(UTC)
    receipt = SwapReceipt(
        slot="cpu-2", released_model="phr00t", loaded_model="anisora", how="killed", probe="none", reason="no probe"
    )
    task = lifecycle.claim(degraded_task(now), owner="hand", worker="degraded-0", lease_s=600, now=now)
    task = lifecycle.fail(task, code=FailureCode.INFERENCE_FAILED, message="it broke", swap=receipt, now=now)
    await gateway_link.entries.create(TASKS, task.id, encode_task(task))
    answer = (await http.get(f"/tasks/{task.id}")).json()
    assert answer["swap"] == json.loads(msgspec.json.encode(receipt))


async def test_the_video(http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink) -> None:
    task = await submitted(http)
    url = f"/tasks/{task['id']}/video"
    early = await http.get(url)
    assert (early.status_code, problem(early)["code"]) == (404, "video_not_ready")
    done = await finished(gateway_link, gateway, task["id"])
    await http.get(f"/tasks/{task['id']}?wait=60")
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
    for names in (etag, f'"x", W/{etag}', "*"):
        for method in ("GET", "HEAD"):
            known = await http.request(method, url, headers={"if-none-match": names, "range": "bytes=0-1"})
            assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", etag)
    changed = await http.get(url, headers={"if-match": f'"x", W/{etag}', "range": "bytes=0-1"})
    assert (changed.status_code, problem(changed)["code"]) == (412, "precondition_failed")
    same = await http.get(url, headers={"if-match": f'"x", {etag}', "range": "bytes=0-1", "accept-encoding": "gzip"})
    assert (same.status_code, same.content, "content-encoding" in same.headers) == (206, CONTENT[:2], False)
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
        lifecycle.renew(current, progress=StepsDone(step=3, steps=8), lease_s=60, now=datetime.now(UTC)),
        code=FailureCode.OUT_OF_MEMORY,
        message="the card is full",
        now=datetime.now(UTC),
    )
    await gateway_link.entries.update(TASKS, task["id"], encode_task(failed), revision=revision)
    answer = (await http.get(f"/tasks/{task['id']}?wait=60")).json()
    assert (answer["error"], answer["progress"]) == (
        {"code": "out_of_memory", "message": "the card is full"},
        {"step": 3, "steps": 8, "eta_s": None},
    )


async def test_a_task_that_runs_says_how_long_it_will(http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    """In its JSON, in its tag and on both streams. For a waiting client only the next revision counts, and no time."""
    task = await submitted(http)
    await claimed(gateway_link, task["id"])
    current, revision = await record(gateway_link, task["id"])
    url = f"/tasks/{task['id']}"
    # the gateway may not have seen the claim yet
    claim = await http.get(url, headers={"if-none-match": f'"{revision - 1}"'}, params={"wait": "20"})
    assert claim.json()["progress"] == {"step": 0, "steps": 8, "eta_s": None}
    # the last step is long overdue: the 30 s that follow the steps are what is left, all through the test
    done = StepsDone(step=7, steps=8, step_s=3_600, at=datetime.now(UTC) - timedelta(days=1), after_s=30)
    running = lifecycle.renew(current, progress=done, lease_s=60, now=datetime.now(UTC))
    revision = await gateway_link.entries.update(TASKS, task["id"], encode_task(running), revision=revision)
    answer = await http.get(url, headers={"if-none-match": f'"{revision - 1}"'}, params={"wait": "20"})
    assert answer.json()["progress"] == {"step": 7, "steps": 8, "eta_s": 30.0}
    assert answer.headers["etag"] == f'"{revision}-30"'
    assert (await http.get(url, headers={"if-none-match": answer.headers["etag"]})).status_code == 304
    for stream in (f"{url}/events", f"/tasks/events?wait=0.1&model={task['model']}"):
        follows = {} if stream.startswith(url) else {"last-event-id": str(revision - 1)}
        async with http.stream("GET", stream, headers=follows) as events:
            async for line in events.aiter_lines():
                if line.startswith("data:") and task["id"] in line:
                    assert json.loads(line.removeprefix("data:"))["progress"]["eta_s"] == 30.0
                    break
            else:
                raise AssertionError(f"{stream} says nothing of the task")
    assert (await http.delete(url)).json()["progress"] == {"step": 7, "steps": 8, "eta_s": None}


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
