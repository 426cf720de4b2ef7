"""API keys on real gateways: how long they are valid, whose tasks they show, and the order of refusals."""

import asyncio
import json
from datetime import UTC, datetime

import httpx
import pytest

from contracts.keys import Presented
from contracts.tasks import Priority, TaskStatus
from contracts.topology import KEYS
from gateway.http.admin import MODE_MAX_BYTES
from ops.nats.api_keys import add, revoke
from tests.kit.gateway import System
from tests.kit.keyed import (
    BODY,
    Keyed,
    by,
    every_gateway_answers,
    every_gateway_knows,
    exchange,
    keyed,
    make,
    run,
    submit,
    system,
    worn_out,
)
from tests.kit.support import BOUND_S, eventually

__all__ = ["keyed", "system"]  # fixtures

# An address of the loopback that no other test calls from.
ELSEWHERE = "127.0.0.7"
BODY_MAX = 12 * 1024 * 1024


# ── whose tasks ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_caller_sees_its_own_tasks_and_no_others(system: System, keyed: Keyed) -> None:
    alice, bob, operator = (by(keyed.keys[name]) for name in ("alice", "bob", "operator"))
    task_id = await submit(system, keyed.keys["alice"])
    assert (await system.record(task_id))[0].caller == "alice"
    calls = [
        ("GET", f"/tasks/{task_id}"),
        ("GET", f"/tasks/{task_id}?wait=30"),
        ("GET", f"/tasks/{task_id}/events"),
        ("GET", f"/tasks/{task_id}/video"),
        ("HEAD", f"/tasks/{task_id}/video"),
        ("DELETE", f"/tasks/{task_id}"),
    ]
    unknown = await system.http.get("/tasks/019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55", headers=bob)
    for method, path in calls:
        answer = await system.http.request(method, path, headers=bob)
        assert answer.status_code == 404, (method, path)
        if method != "HEAD":
            # as if the task did not exist: not a word differs
            assert answer.json() == unknown.json(), (method, path)
    # a second key of the same caller finds it, and so does an operator
    for headers in (by(keyed.keys["alice-reads"]), operator):
        assert (await system.http.get(f"/tasks/{task_id}", headers=headers)).json()["status"] == "pending"
    assert (await system.http.delete(f"/tasks/{task_id}", headers=alice)).json()["error"]["code"] == "cancelled"
    assert (await system.http.get(f"/admin/tasks/{task_id}/explain", headers=operator)).status_code == 200


async def test_lists_and_cursors_show_what_the_caller_may_see(system: System, keyed: Keyed) -> None:
    owner = {}
    for name in ("bob", "alice", "bob", "alice", "bob"):
        owner[await submit(system, keyed.keys[name])] = name

    async def listed(name: str, **query: str) -> tuple[list[str], str | None]:
        answer = await system.http.get("/tasks", params=query, headers=by(keyed.keys[name]))
        assert answer.status_code == 200, answer.text
        page = answer.json()
        return [task["id"] for task in page["tasks"] if task["id"] in owner], page["next_cursor"]

    newest_first = list(reversed(owner))
    for name in ("alice", "bob"):
        mine = [task_id for task_id in newest_first if owner[task_id] == name]
        assert (await listed(name))[0] == mine
        assert (await listed(name, status="pending", model="anisora"))[0] == mine
    assert (await listed("alice-reads"))[0] == (await listed("alice"))[0]
    assert (await listed("operator"))[0] == newest_first
    # a cursor is a place in time and no permission
    _, cursor = await listed("operator", limit="1")
    assert cursor is not None
    assert (await listed("alice", cursor=cursor))[0] == [
        task_id for task_id in newest_first if owner[task_id] == "alice"
    ]
    first, cursor = await listed("bob", limit="1")
    assert cursor is not None
    rest, _ = await listed("bob", cursor=cursor)
    assert first + rest == [task_id for task_id in newest_first if owner[task_id] == "bob"]


async def test_an_idempotency_key_belongs_to_its_caller(system: System, keyed: Keyed) -> None:
    same = {"idempotency-key": "order-17"}
    alices = await submit(system, keyed.keys["alice"], **same)
    assert await submit(system, keyed.keys["alice"], **same) == alices
    assert await submit(system, keyed.keys["bob"], **same) != alices


async def test_a_key_names_no_class_above_its_highest(system: System, keyed: Keyed) -> None:
    presented = await add(
        system.link, "night", ("submit",), highest_priority=Priority.BACKGROUND, now=datetime.now(UTC)
    )
    await every_gateway_answers(keyed, presented, 200)
    url, headers = keyed.gateway.url, by(presented)
    named = await system.http.post(f"{url}/generate", json=BODY | {"priority": "standard"}, headers=headers)
    assert (named.status_code, named.json()["code"]) == (403, "priority_forbidden")
    assert "background at most" in named.json()["detail"]
    unnamed = await system.http.post(f"{url}/generate", json=BODY, headers=headers)
    assert (unnamed.status_code, unnamed.json()["priority"]) == (202, "background")


async def test_a_key_has_bounds_on_what_waits_and_runs_for_its_caller(system: System, keyed: Keyed) -> None:
    """A request that is repeated with its Idempotency-Key is no new task, and passes."""
    presented = await add(
        system.link, "bounded", ("submit", "read"), max_waiting=2, max_running=1, now=datetime.now(UTC)
    )
    await every_gateway_answers(keyed, presented, 200)
    same = {"idempotency-key": "bounded-1"}
    first = await submit(system, presented, **same)
    second = await submit(system, presented)
    refused = await system.http.post("/generate", json=BODY, headers=by(presented))
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_tasks")
    assert "2 tasks of yours wait, and this key allows 2" in refused.json()["detail"]
    assert "retry-after" in refused.headers
    assert await submit(system, presented, **same) == first
    await submit(system, keyed.keys["bob"])  # a caller's bounds limit no other caller
    await system.claim(second)

    async def runs() -> bool:
        answer = await system.http.post("/generate", json=BODY, headers=by(presented))
        assert answer.status_code == 429
        return "1 tasks of yours run, and this key allows 1" in answer.json()["detail"]

    await eventually(runs)


async def test_the_order_of_refusals(system: System, keyed: Keyed) -> None:
    """Each request also has all the faults that come later in the order."""
    await switched(system, keyed, "degraded")
    try:
        limited = await worn_out(system, keyed.gateway.url, "alice", "submit")
        unlimited, reads = by(keyed.keys["alice"]), by(keyed.keys["alice-reads"])
        await system.fill()
        text, declared_json = {"content-type": "text/plain"}, {"content-type": "application/json"}
        stale = {"if-match": '"1"'}
        cut, wrong = b'{"model":', json.dumps(BODY | {"steps": 1}).encode()
        refusals: list[tuple[dict[str, str], bytes, int]] = [
            (text, b"x" * (BODY_MAX + 1), 413),
            (text, cut, 401),
            (reads | text, cut, 403),
            (limited | text, cut, 415),
            (limited | declared_json, cut, 400),
            (limited | declared_json, wrong, 422),
            (limited | declared_json | stale, json.dumps(BODY).encode(), 429),
            (limited | text, json.dumps(BODY | {"prompt": "x" * 60_000}).encode(), 429),  # before it is parsed
            (unlimited | declared_json | stale, json.dumps(BODY).encode(), 412),
            (unlimited | declared_json, json.dumps(BODY).encode(), 503),
        ]
        for headers, body, status in refusals:
            answer = await system.http.post("/generate", content=body, headers=headers)
            assert answer.status_code == status, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["limit"] == "depth"
    finally:
        await switched(system, keyed, "auto")


async def switched(system: System, keyed: Keyed, mode: str) -> None:
    """Turns the switch of anisora, and returns when the gateway knows."""
    await system.link.entries.put("control", "lanes.anisora", mode.encode())

    async def known() -> bool:
        answer = await system.http.get("/admin/lanes/anisora/mode", headers=by(keyed.keys["operator"]))
        return bool(answer.json()["mode"] == mode)

    await eventually(known)


async def test_the_order_of_refusals_of_the_switch(system: System, keyed: Keyed) -> None:
    limited = await worn_out(system, keyed.gateway.url, "operator", "admin")
    submits = by(keyed.keys["alice"])
    text, declared_json = {"content-type": "text/plain"}, {"content-type": "application/json"}
    refusals: list[tuple[dict[str, str], bytes, int]] = [
        (text, b"x" * (BODY_MAX + 1), 413),
        (text, b"{", 401),
        (submits | text, b"{", 403),
        (limited | text, b"{", 415),
        (limited | declared_json, b"{", 400),
        (limited | declared_json, b"{}", 422),
        (limited | declared_json, b'{"mode": "auto"}', 429),
        (limited | text, b"{" + b" " * 5_000, 413),
    ]
    for headers, body, status in refusals:
        answer = await system.http.put("/admin/lanes/anisora/mode", content=body, headers=headers)
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize("target", ["POST /generate", "PUT /admin/lanes/anisora/mode"])
def test_without_a_key_no_body_is_waited_for(keyed: Keyed, target: str) -> None:
    """The gateway answers before a byte of the body is sent. If the length is undeclared, it also closes the
    connection."""
    head = f"{target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    declared = exchange(keyed.gateway.port, head + b"Content-Length: 1000\r\n\r\n")
    assert declared.startswith(b"http/1.1 401")
    assert b"connection: close" not in declared
    endless = exchange(keyed.gateway.port, head + b"Transfer-Encoding: chunked\r\n\r\n")
    assert endless.startswith(b"http/1.1 401")
    assert b"connection: close" in endless
    forbidden = exchange(
        keyed.gateway.port,
        head + f"Authorization: Bearer {keyed.keys['alice-reads'].text}\r\nContent-Length: 1000\r\n\r\n".encode(),
    )
    assert forbidden.startswith(b"http/1.1 403")


@pytest.mark.parametrize(
    ("target", "max_bytes"), [("POST /generate", BODY_MAX), ("PUT /admin/lanes/anisora/mode", MODE_MAX_BYTES)]
)
def test_a_body_of_undeclared_size_is_measured_after_the_key_and_before_the_rest(
    keyed: Keyed, target: str, max_bytes: int
) -> None:
    head = f"{target} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n".encode()
    head += f"Authorization: Bearer {keyed.keys['operator'].text}\r\n\r\n".encode()
    chunk = b"x" * (max_bytes + 1)
    answer = exchange(keyed.gateway.port, head, f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
    assert answer.startswith(b"http/1.1 413")
    assert b"connection: close" in answer


async def test_a_key_over_its_rate_learns_when_to_come_back(system: System, keyed: Keyed) -> None:
    limited = await worn_out(system, keyed.gateway.url, "alice", "read")
    answer = await system.http.get("/tasks", headers=limited)
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert 0 < int(answer.headers["retry-after"]) <= 3_600
    # each gateway counts alone, and each key separately
    await every_gateway_knows(keyed, system.link)
    async with httpx.AsyncClient(base_url=keyed.tls.url, verify=keyed.tls.certificate.trust(), timeout=BOUND_S) as http:
        assert (await http.get("/tasks", headers=limited)).status_code == 200
        assert (await http.get("/tasks", headers=limited)).status_code == 429
    assert (await system.http.get("/tasks", headers=by(keyed.keys["alice"]))).status_code == 200


async def test_a_key_counts_on_every_gateway_until_it_is_revoked(system: System, keyed: Keyed) -> None:
    presented = await make(system.link, "carol", "submit", "read")
    await every_gateway_answers(keyed, presented, 200)
    task_id = await submit(system, presented)
    events: list[str] = []

    async def follow() -> None:
        async with system.http.stream("GET", f"/tasks/{task_id}/events", headers=by(presented)) as stream:
            async for line in stream.aiter_lines():
                events.append(line)

    following = asyncio.create_task(follow())
    waiting = asyncio.create_task(system.http.get(f"/tasks/{task_id}?wait=30", headers=by(presented)))

    async def both_are_answered() -> bool:
        return bool(events)

    await eventually(both_are_answered)
    await revoke(system.link, presented.id, now=datetime.now(UTC))
    await every_gateway_answers(keyed, presented, 401)
    # a client that was let in before gets nothing more
    claimed = await system.claim(task_id)
    assert claimed.status is TaskStatus.PROCESSING
    await asyncio.wait_for(following, 60)
    assert "processing" not in "".join(events)
    answer = await system.http.delete(f"/tasks/{task_id}", headers=by(keyed.keys["operator"]))
    assert answer.status_code == 200
    assert (await asyncio.wait_for(waiting, 90)).status_code == 401


async def test_an_unreadable_key_is_logged_and_ignored(system: System, keyed: Keyed) -> None:
    await system.link.entries.put(KEYS, "0123456789ab", b'{"id": "\xff"}')

    async def said() -> bool:
        return '"kind": "api_key"' in keyed.gateway.log()

    await eventually(said)
    await every_gateway_answers(keyed, Presented("0123456789ab", "0" * 64), 401)
    await every_gateway_answers(keyed, keyed.keys["alice"], 200)
    listed = await asyncio.to_thread(run, "keys", "list", "--nats-url", system.gateway.nats.url)
    assert "0123456789ab cannot be read" in listed.stderr
    refused = await asyncio.to_thread(run, "keys", "revoke", "0123456789ab", "--nats-url", system.gateway.nats.url)
    assert (refused.returncode, "nats kv del keys 0123456789ab" in refused.stderr) == (1, True)


def test_no_secret_is_in_a_log(keyed: Keyed) -> None:
    for gateway in (keyed.gateway, keyed.tls):
        with httpx.Client(base_url=gateway.url, verify=keyed.tls.certificate.trust(), timeout=BOUND_S) as http:
            for presented in (*keyed.keys.values(), Presented("ab" * 6, "cd" * 32)):
                http.get("/tasks", headers=by(presented))
                http.post("/generate", json=BODY | {"steps": 1}, headers=by(presented))
        log = gateway.log()
        assert '"closed"' in log
        assert not [presented.id for presented in keyed.keys.values() if presented.secret in log]
        assert "cd" * 32 not in log


def test_https_is_served_and_plain_http_is_not(keyed: Keyed) -> None:
    with httpx.Client(verify=keyed.tls.certificate.trust(), timeout=BOUND_S) as http:
        assert http.get(f"{keyed.tls.url}/healthz").json() == {"status": "ok"}
    with pytest.raises(httpx.TransportError):
        httpx.get(keyed.tls.url.replace("https", "http") + "/healthz", timeout=BOUND_S)


async def test_a_refusal_is_traced_to_its_caller_by_its_line_in_the_log(keyed: Keyed, system: System) -> None:
    """The line has the name of the key, even if it is revoked or sent with a wrong secret; else it has the address."""
    gone = await make(system.link, "carol", "read")
    await revoke(system.link, gone.id, now=datetime.now(UTC))
    await every_gateway_knows(keyed, system.link)
    # of an address the log has 20 refusals in 10 s, which the earlier tests may have used up: this one has its own
    elsewhere = httpx.AsyncHTTPTransport(local_address=ELSEWHERE)
    async with httpx.AsyncClient(base_url=keyed.gateway.url, transport=elsewhere, timeout=BOUND_S) as http:
        await require_lines(keyed, System(keyed.gateway, system.link, http), gone)


async def require_lines(keyed: Keyed, system: System, gone: Presented) -> None:
    alice, reader = keyed.keys["alice"], keyed.keys["alice-reads"]
    wrong = Presented(alice.id, "0" * 64)
    task_id = await submit(system, keyed.keys["bob"])
    answers = {
        "unknown field": await system.http.post("/generate", json=BODY | {"secret_field": "s3cret"}, headers=by(alice)),
        "not theirs": await system.http.get(f"/tasks/{task_id}?secret=s3cret", headers=by(alice)),
        "no scope": await system.http.post("/generate", json=BODY, headers=by(reader)),
        "wrong secret": await system.http.get("/tasks", headers=by(wrong)),
        "revoked": await system.http.get("/tasks", headers=by(gone)),
        "no key": await system.http.get("/tasks", headers={"x-request-id": "proxy-7"}),
        "no path": await system.http.get(f"/nothing/{alice.text}", headers=by(alice)),
        "no method": await system.http.patch("/generate"),
    }
    served = await system.http.get("/tasks", headers=by(alice))
    assert all(answer.status_code >= 400 for answer in answers.values())
    log = keyed.gateway.log()
    lines = {line["request_id"]: line for line in map(json.loads, log.splitlines()) if line["event"] == "request"}
    of = {name: lines[answer.headers["x-request-id"]] for name, answer in answers.items()}
    for name, answer in answers.items():
        assert (of[name]["status"], of[name]["code"]) == (answer.status_code, answer.json()["code"])
        assert of[name]["address"] == ELSEWHERE
    assert {name: line.get("caller") for name, line in of.items()} == {
        "unknown field": "alice",
        "not theirs": "alice",
        "no scope": "alice",
        "wrong secret": "alice",
        "revoked": "carol",
        "no key": None,
        "no path": None,
        "no method": None,
    }
    assert of["no scope"]["key"] == reader.id
    assert [name for name, line in of.items() if line.get("key_counts") is False] == ["wrong secret", "revoked"]
    assert of["no key"]["request_id"] == "proxy-7"
    assert of["no path"]["path"] == f"/nothing/wl_{alice.id}_..."
    assert served.headers["x-request-id"] not in lines
    for secret in (alice.secret, reader.secret, gone.secret, "s3cret", BODY["prompt"]):
        assert secret not in log
