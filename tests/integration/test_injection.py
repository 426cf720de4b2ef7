"""Ids, models, keys and headers that try to mean something else: the gateway refuses them, NATS is not touched, and no
header splits."""

import asyncio
import json
import urllib.parse

import httpx
import pytest

from contracts.topology import CONTROL, DEGRADED, FALLBACKS, TASKS, bucket_stream, lane_stream
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.event_source import EventSource
from tests.kit.gateway import MODELS, GatewayProcess
from tests.kit.loopback import Talk
from tests.kit.samples import data_uri

NAMES = {
    "crlf": "x\r\nSet-Cookie: a=b",
    "dots": "a.b",
    "parents": "../../etc/passwd",
    "dot": ".",
    "star": "*",
    "rest": ">",
    "subject": "$KV.tasks.>",
    "api": "$JS.API.STREAM.PURGE.KV_tasks",
    "blank": "a b",
    "nul": "a\0b",
    "slash": "a/b",
    "backslash": "a\\b",
    "percent": "%2e%2e%2f",
    "long": "x" * 8_000,
    "non-ascii": "Ω☃",
    "wide-digits": "01890a5d-ac96-774b-bcce-b302099a8057",
    "upper-case": "01890A5D-AC96-774B-BCCE-B302099A8057",
    "with-line-end": "01890a5d-ac96-774b-bcce-b302099a8057\n",
    "quote": '";filename="x',
}
STREAMS = (*map(lane_stream, MODELS), DEGRADED, *map(bucket_stream, (TASKS, CONTROL, FALLBACKS)))


async def touched(link: NatsLink) -> dict[str, tuple[int, int]]:
    """The last sequence and the number of messages of every stream."""
    states = {name: (await js_of(link).stream_info(name)).state for name in STREAMS}
    return {name: (state.last_seq, state.messages) for name, state in states.items()}


async def raw(gateway: GatewayProcess, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """The answer to bytes that no client library would send."""
    talk = await Talk.to(gateway.port)
    await talk.say(request)
    head = (await talk.reader.readuntil(b"\r\n\r\n")).decode("ascii")
    status, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await talk.reader.readexactly(int(headers.get("content-length", "0")))
    await talk.close()
    return int(status.split()[1]), headers, body


@pytest.mark.parametrize("name", NAMES)
async def test_hostile_names_in_paths(
    name: str, http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink
) -> None:
    before = await touched(gateway_link)
    quoted = urllib.parse.quote(NAMES[name], safe="")
    for method, path in (
        ("GET", f"/tasks/{quoted}"),
        ("DELETE", f"/tasks/{quoted}"),
        ("GET", f"/tasks/{quoted}/events"),
        ("GET", f"/tasks/{quoted}/video"),
        ("GET", f"/admin/tasks/{quoted}/explain"),
        ("GET", f"/admin/lanes/{quoted}/mode"),
        ("PUT", f"/admin/lanes/{quoted}/mode"),
    ):
        request = (
            f"{method} {path} HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n"
            '{"mode":"degraded"}'
        )
        status, headers, body = await raw(gateway, request.encode())
        assert status in (404, 405), path
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(body)["status"] == status
        assert "set-cookie" not in headers
    assert await touched(gateway_link) == before


@pytest.mark.parametrize("name", NAMES)
async def test_hostile_names_in_queries_and_bodies(name: str, http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    before = await touched(gateway_link)
    hostile = NAMES[name]
    for answer in (
        await http.get("/tasks", params={"model": hostile}),
        await http.get("/tasks", params={"cursor": hostile}),
        await http.get("/tasks", params={"status": hostile}),
        await http.get("/tasks", params={"limit": hostile}),
        await http.post("/generate", json={"model": hostile, "prompt": "x"}),
        await http.post("/generate", json={"model": "anisora", "prompt": "x", hostile: 1}),
    ):
        assert answer.status_code in (400, 422)
        assert answer.headers["content-type"] == "application/problem+json"
        assert "set-cookie" not in answer.headers
        assert len(answer.content) < 4_000
    assert await touched(gateway_link) == before


KEYS = {name: value for name, value in NAMES.items() if name in {"blank", "long", "non-ascii", "nul", "with-line-end"}}


@pytest.mark.parametrize("key", [*KEYS.values(), "", "x" * 256, "a\tb", "\x7f", "é"])
async def test_hostile_idempotency_keys(key: str, gateway: GatewayProcess, gateway_link: NatsLink) -> None:
    before = await touched(gateway_link)
    body = b'{"model":"anisora","prompt":"x"}'
    head = f"POST /generate HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    head += "\r\n"
    request = head.encode() + b"Idempotency-Key:" + key.encode() + b"\r\n\r\n" + body
    status, headers, answer = await raw(gateway, request)
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert json.loads(answer)["code"] in ("invalid_query", "malformed_request")
    assert await touched(gateway_link) == before


@pytest.mark.parametrize("key", ["*", ">", "a.b", "$KV.tasks.>", "../../x", "%0d%0a", '";filename="x', "x" * 255])
async def test_odd_idempotency_keys_are_only_hashed(key: str, http: httpx.AsyncClient) -> None:
    """Whatever a key holds, its task has an ordinary id."""
    headers = {"Idempotency-Key": key}
    first = await http.post("/generate", json={"model": "anisora", "prompt": "x"}, headers=headers)
    again = await http.post("/generate", json={"model": "anisora", "prompt": "x"}, headers=headers)
    assert (first.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert len(first.json()["id"]) == 36
    assert first.headers["location"] == f"/tasks/{first.json()['id']}"


@pytest.mark.parametrize(
    "traceparent",
    ["", "x", "00-" + "0" * 32, "00-" + "g" * 32 + "-" + "0" * 16 + "-01", "00-" + "a" * 9_000, "é", "a\tb", "00-\0"],
)
async def test_a_hostile_traceparent_is_ignored(
    traceparent: str, gateway: GatewayProcess, gateway_link: NatsLink
) -> None:
    body = b'{"model":"anisora","prompt":"x"}'
    head = f"POST /generate HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    head += "\r\n"
    status, _, answer = await raw(gateway, head.encode() + b"traceparent:" + traceparent.encode() + b"\r\n\r\n" + body)
    if "\0" in traceparent:
        assert status == 400
        return
    assert status == 202
    stored = await gateway_link.entries.get(TASKS, json.loads(answer)["id"])
    assert stored is not None
    assert json.loads(stored.value or b"")["traceparent"] is None


@pytest.mark.parametrize(
    "header",
    [
        b"Host: localhost:1@localhost",
        b"X-Forwarded-Host: localhost:666",
        b"X-Forwarded-Proto: javascript",
        b"X-Forwarded-Prefix: /evil",
        b"X-Forwarded-Prefix: //evil.example",
        b"X-Original-URL: /admin/lanes",
        b"X-HTTP-Method-Override: DELETE",
    ],
)
async def test_no_header_leads_an_answer_elsewhere(header: bytes, gateway: GatewayProcess) -> None:
    body = b'{"model":"anisora","prompt":"x"}'
    # a client that names another host than the loopback needs a key (`test_access.py`); this test is about the header
    host = b"" if header.startswith(b"Host:") else b"Host: [::1]\r\n"
    head = (
        b"POST /generate HTTP/1.1\r\n"
        + host
        + header
        + b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    status, headers, answer = await raw(gateway, head % len(body) + body)
    assert status == 202
    assert headers["location"] == f"/tasks/{json.loads(answer)['id']}"  # a path, whatever host the client names
    assert b"evil" not in answer
    assert "evil" not in str(headers)


@pytest.mark.parametrize(
    "form", ["http://127.0.0.1:{}/x.png", "//127.0.0.1:{}/x", "data:image/png,http://127.0.0.1:{}/"]
)
async def test_no_url_is_fetched_that_no_operator_allowed(form: str, http: httpx.AsyncClient) -> None:
    """Not even a URL inside an SVG. A server listens at the URL, and the gateway does not connect."""
    heard = 0

    async def hear(reader: object, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard += 1
        writer.close()

    listener = await asyncio.start_server(hear, "127.0.0.1", 0)
    url = form.format(listener.sockets[0].getsockname()[1])
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>'.encode()
    for image in (url, data_uri(svg, "image/svg+xml"), data_uri(svg, "image/png")):
        answer = await http.post("/generate", json={"model": "anisora", "prompt": "x", "image": image})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "bad_image")
        assert (await http.get("/healthz")).status_code == 200  # by then any fetch would be under way
    for named in ({"url": url}, {"ref": url}):
        answer = await http.post("/generate", json={"model": "anisora", "prompt": "x", "image": named})
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    listener.close()
    assert heard == 0


async def test_a_prompt_with_line_ends_splits_no_event(http: httpx.AsyncClient) -> None:
    prompt = "a\r\n\r\nevent: task\r\ndata: {}\u2028\r\rid: 9"
    task = (await http.post("/generate", json={"model": "anisora", "prompt": prompt})).json()
    assert (await http.delete(f"/tasks/{task['id']}")).status_code == 200
    (event,) = EventSource().read((await http.get(f"/tasks/{task['id']}/events")).content)
    assert event.name == "task"
    assert event.last_id.isdigit()
    assert json.loads(event.data)["parameters"]["prompt"] == prompt
