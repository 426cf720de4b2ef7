"""Event streams as browsers and old clients read them, from a real gateway."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.http.event_streams import COME_BACK_S
from ops.nats.link import NatsLink
from tests.kit.event_source import EventSource, Message
from tests.kit.gateway import GatewayProcess
from tests.kit.loopback import Talk
from tests.kit.played import CONTENT, claimed, finished, submitted


async def messages(stream: httpx.Response, source: EventSource) -> AsyncIterator[Message]:
    async for piece in stream.aiter_bytes():
        for message in source.read(piece):
            yield message


def place(message: Message) -> tuple[str, int | None]:
    task: dict[str, Any] = json.loads(message.data)
    return task["status"], task["queue"] and task["queue"]["position"]


async def test_a_stream_as_a_browser_reads_it(
    http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink
) -> None:
    task = await submitted(http)
    source, seen = EventSource(), []
    async with http.stream("GET", f"/tasks/{task['id']}/events") as stream:
        assert stream.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-store, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert "connection" not in stream.headers
        async for message in messages(stream, source):
            seen.append(message)
            if len(seen) == 1:
                assert source.retry_ms == COME_BACK_S * 1000
                await finished(gateway_link, gateway, task["id"])
    assert [(each.name, json.loads(each.data)["status"]) for each in seen] == [
        ("task", "pending"),
        ("task", "processing"),
        ("task", "done"),
    ]
    # a browser reconnects by itself, and the gateway then ends that for good
    again = await http.get(f"/tasks/{task['id']}/events", headers={"last-event-id": source.last_id})
    assert (again.status_code, again.content) == (204, b"")


async def test_a_client_hears_when_its_task_moves_up(http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    """Before this, a client saw the new place only when the record changed: 28 s later, when the wait ran out."""
    first, second, task = [await submitted(http, model="phr00t") for _ in range(3)]
    at = task["queue"]["position"]
    source, seen = EventSource(), []
    async with http.stream("GET", f"/tasks/{task['id']}/events") as stream:
        async for message in messages(stream, source):
            seen.append(message)
            if len(seen) == 1:
                await http.delete(f"/tasks/{first['id']}")
            elif len(seen) == 2:
                await claimed(gateway_link, second["id"])  # a worker takes it, as the watch shows
            elif len(seen) == 3:
                await submitted(http, model="phr00t")  # a task behind it is no news
                await http.delete(f"/tasks/{task['id']}")
    assert [place(each) for each in seen] == [
        ("pending", at),
        ("pending", at - 1),
        ("pending", at - 2),
        ("failed", None),
    ]
    # the place is no part of the record: a client that reconnects with such an id gets the current place
    assert len({each.last_id for each in seen[:3]}) == 1
    assert seen[3].last_id != seen[2].last_id


async def answer_to_http_1_0(gateway: GatewayProcess, path: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
    talk = await Talk.to(gateway.port)
    await talk.say("\r\n".join((f"GET {path} HTTP/1.0", *headers, "", "")).encode())
    head, _, body = (await talk.answer()).partition(b"\r\n\r\n")
    await talk.close()
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    assert len(dict(fields)) == len(fields), fields
    return int(status.split()[1]), dict(fields), body


@pytest.fixture
async def done(http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink) -> str:
    task = await submitted(http)
    await finished(gateway_link, gateway, task["id"])
    assert (await http.get(f"/tasks/{task['id']}?wait=10")).json()["status"] == "done"
    return str(task["id"])


@pytest.mark.parametrize("asked", ["Accept: */*", "Connection: keep-alive", "Expect: 100-continue"])
async def test_no_answer_to_http_1_0_has_chunks(asked: str, done: str, gateway: GatewayProcess) -> None:
    """nginx uses HTTP/1.0 by default, as old monitors do: every answer ends by its length or with its connection."""
    answers = {}
    for path in (
        f"/tasks/{done}/events",
        f"/tasks/{done}/video",
        f"/tasks/{done}",
        "/tasks",
        "/settings",
        "/healthz",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/docs/assets/swagger-ui.css",
        "/nothing",
    ):
        status, headers, body = await answer_to_http_1_0(gateway, path, "Host: 127.0.0.1", asked)
        answers[path] = body
        assert status == (404 if path == "/nothing" else 200), path
        assert "transfer-encoding" not in headers, path
        assert headers["connection"] == "close", path
        if path.endswith("/events"):
            assert "content-length" not in headers
        elif "content-length" in headers:
            assert len(body) == int(headers["content-length"]), path
    assert answers[f"/tasks/{done}/video"] == CONTENT
    (event,) = EventSource().read(answers[f"/tasks/{done}/events"])
    assert json.loads(event.data)["status"] == "done"


async def test_a_stream_to_http_1_0_is_seen_as_it_goes(http: httpx.AsyncClient, gateway: GatewayProcess) -> None:
    task = await submitted(http)
    talk = await Talk.to(gateway.port)
    await talk.say(f"GET /tasks/{task['id']}/events HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
    source, seen = EventSource(), []
    await talk.reader.readuntil(b"\r\n\r\n")
    while piece := await talk.reader.read(65_536):
        for message in source.read(piece):
            seen.append(json.loads(message.data)["status"])
            if len(seen) == 1:
                await http.delete(f"/tasks/{task['id']}")
    await talk.close()
    assert (seen[0], seen[-1]) == ("pending", "failed")


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
