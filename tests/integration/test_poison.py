"""Poisoned messages and entries on a real server: counted, logged once without their content, and survived."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from contracts.lanes import LaneState
from contracts.settings import Catalog
from contracts.tasks import GenerationTask, TaskStatus, decode_task, encode_task
from contracts.topology import (
    COLD_STARTS,
    CONTROL,
    DEGRADED,
    DELIVERIES,
    FALLBACKS,
    LANES,
    LEADER,
    LEADER_KEY,
    SLOTS,
    TASKS,
    WEBHOOKS,
    WORK_CONSUMER,
    lane_stream,
    work_subject,
)
from lane_worker.runtime import claiming, loop, queued
from ops.nats.leader import Leader
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess, report_lane
from tests.kit.records import pending_task
from tests.kit.steered import Worker
from tests.kit.support import eventually

Route = Literal["lane", "degraded"]
SECRET = "zebra7319"
LARGE = 1_000_000  # nats-server takes messages of up to 1 MiB


def fresh(task_id: str, route: Route = "lane", **changes: Any) -> GenerationTask:
    now = datetime.now(UTC)
    deadline = now + timedelta(seconds=30)
    return pending_task(task_id, created_at=now, queued_at=now, deadline_at=deadline, route=route, **changes)


def spoilt(task: GenerationTask, **changes: Any) -> bytes:
    return json.dumps(json.loads(encode_task(task)) | changes).encode()


def poisons(route: Route) -> dict[str, bytes]:
    task = fresh("poison", route)
    parameters = json.loads(encode_task(task))["parameters"]
    return {
        "empty": b"",
        "garbage": b"\0\xff\xfe" * 99,
        "bad-utf-8": encode_task(task).replace(b"a red fox", b"a \xff fox"),
        "large-field": spoilt(task, parameters=parameters | {"prompt": SECRET * (LARGE // len(SECRET) - 200)}),
        "unknown-status": spoilt(task, status=SECRET),
        "missing-field": json.dumps({"id": task.id, "note": SECRET}).encode(),
        "path-as-id": spoilt(task, id="../../x"),
        "wildcard-as-model": spoilt(task, model="*"),
        "another-id": encode_task(fresh("somebody-else", route)),
        "another-model": encode_task(fresh("poison", route, model="phr00t")),
        "huge-epoch": spoilt(task, epoch=10**30),
        "far-future": spoilt(task, deadline_at="9999-12-31T23:59:59Z"),
    }


@pytest.fixture(params=["lane", "degraded"])
def route(request: pytest.FixtureRequest) -> Route:
    chosen: Route = request.param
    return chosen


@pytest.fixture
async def worker(route: Route, link: NatsLink, catalog: Catalog, tmp_path: Path) -> AsyncIterator[Worker]:
    stream = lane_stream("anisora") if route == "lane" else DEGRADED
    worker = Worker(link, catalog.windows, tmp_path, "one", stream=stream)
    worker.runner.may_end.set()
    yield worker
    await worker.close()


async def done(link: NatsLink, task_id: str) -> None:
    async def look() -> bool:
        entry = await link.entries.get(TASKS, task_id)
        return entry is not None and decode_task(entry.value or b"").status is TaskStatus.DONE

    await eventually(look)


async def test_a_poisoned_queue(route: Route, link: NatsLink, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "AHEAD_MAX_LOOKS", 2)
    monkeypatch.setattr(queued, "LEFT_MAX_S", 0)  # a message that may be a newer version's has been left long enough
    known = fresh("known", route)
    await link.entries.create(TASKS, known.id, encode_task(known))
    subject = work_subject(route, "anisora", "poison")
    every = poisons(route)
    with capture_logs() as lines:
        for poison in every.values():
            await link.messages.publish(subject, poison)
        # a message that stays ahead of its record for ever
        ahead = work_subject(route, "anisora", known.id)
        await link.messages.publish(ahead, encode_task(fresh(known.id, route, epoch=7)))
        good = fresh("good", route)
        newer = spoilt(good, added_later={"deep": [SECRET]})  # a field that this version does not know
        await link.messages.publish(work_subject(route, "anisora", good.id), newer)
        await done(link, good.id)

        async def all_are_reported() -> bool:  # the order may start the good task before the one that is ahead
            return [line["event"] for line in lines].count("unreadable") > len(every)

        await eventually(all_are_reported)
    assert [task.id for task in worker.runner.ran] == [good.id]
    unreadable = [line for line in lines if line["event"] == "unreadable"]
    assert sorted(line["where"] for line in unreadable) == sorted([subject] * len(every) + [ahead])
    assert {line["kind"] for line in unreadable} == {"task"}
    assert SECRET not in str(lines)
    assert await link.entries.get(TASKS, "poison") is None

    async def is_empty() -> bool:
        return (
            await js_of(link).stream_info(lane_stream("anisora") if route == "lane" else DEGRADED)
        ).state.messages == 0

    await eventually(is_empty)


async def test_what_a_newer_version_wrote_is_left_for_one_of_its_workers(
    link: NatsLink, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker can read neither the message nor the record. The server redelivers the message, and a worker of the
    newer version serves it."""
    monkeypatch.setattr(loop, "LEFT_S", 0.1)
    worker = Worker(link, catalog.windows, tmp_path, "one")
    worker.runner.may_end.set()
    task, stream = fresh("01890a5d-ac96-774b-bcce-b302099a80fa"), lane_stream("anisora")
    revision = await link.entries.create(TASKS, task.id, spoilt(task, status="paused"))
    with capture_logs() as lines:
        await link.messages.publish(work_subject("lane", "anisora", task.id), encode_task(task))
        await link.messages.publish(work_subject("lane", "anisora", "newer"), spoilt(fresh("newer"), status="paused"))

        async def left() -> bool:
            info = await js_of(link).consumer_info(stream, WORK_CONSUMER)
            return (info.num_redelivered or 0) == 2

        await eventually(left)
        unreadable = [line["where"] for line in lines if line["event"] == "unreadable"]
        assert len(unreadable) == len(set(unreadable))  # each is logged once, however often it comes
        await link.entries.update(
            TASKS, task.id, encode_task(task), revision=revision
        )  # as after an upgrade of this worker
        await done(link, task.id)
    assert (await link.streams.depth(stream)).messages == 1
    assert [ran.id for ran in worker.runner.ran] == [task.id]
    await worker.close()


async def test_a_record_of_a_newer_version_is_left_until_it_can_be_read(
    http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink
) -> None:
    """The record holds the deadline: a gateway that can read it acts, and this gateway does as soon as it can."""
    task = replace(fresh("01890a5d-ac96-774b-bcce-b302099a80fb", "degraded"), deadline_at=datetime.now(UTC))
    revision = await gateway_link.entries.create(TASKS, task.id, spoilt(task, status="paused"))

    async def left() -> bool:
        return task.id in [line["where"] for line in unreadable_lines(gateway) if line["kind"] == "record"]

    await eventually(left)
    await gateway_link.entries.update(TASKS, task.id, encode_task(task), revision=revision)  # as after an upgrade

    async def ended() -> bool:
        entry = await gateway_link.entries.get(TASKS, task.id)
        return decode_task((entry and entry.value) or b"").status is TaskStatus.FAILED

    await eventually(ended)


async def test_a_poisoned_leader_key_keeps_nobody_out(link: NatsLink) -> None:
    await link.entries.put(LEADER, LEADER_KEY, b"\0\xff")  # without a time to live: it would stay for ever
    leader = Leader(link, worker="w", owner="o", slot="cpu-0")
    await asyncio.wait_for(leader.campaign(), 60)


def unreadable_lines(gateway: GatewayProcess) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in gateway.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "unreadable"]


KEYS = {
    TASKS: ("poison", "a.b.c", "x" * 200, "\N{SNOWMAN}", "$x", "a=b/c"),
    LANES: ("anisora.poison", "poison", "a.b.c", "\N{SNOWMAN}"),
    SLOTS: ("poison", "a.b.c"),
    LEADER: (LEADER_KEY, "poison"),
    CONTROL: ("lanes.phr00t", "poison", "lanes.a.b", "lanes.\N{SNOWMAN}"),
    FALLBACKS: ("phr00t", "phr00t.past", "poison", "a.b.c"),
    COLD_STARTS: ("phr00t", "poison"),
    WEBHOOKS: ("poison", "a.b.c"),
    DELIVERIES: ("poison", "a.b.c"),
}
VALUES = {
    "garbage": b"\0\xff" * 99,
    "bad-utf-8": b'{"model":"\xff"}',
    "array": b"[]",
    "large": json.dumps({"detail": SECRET * (LARGE // len(SECRET))}).encode(),
    "deep": b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "unknown": json.dumps({"status": SECRET, "state": SECRET, "mode": SECRET}).encode(),
}


async def test_poisoned_buckets(
    http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink, tmp_path: Path
) -> None:
    """A gateway that starts afterwards copes with them as well."""
    count = len(unreadable_lines(gateway))
    for bucket, keys in KEYS.items():
        for key in keys:
            for value in VALUES.values():
                # bypasses `Entries.put`, which would refuse some of the keys
                await gateway_link.messages.publish(f"$KV.{bucket}.{key}", value)
    await gateway_link.messages.publish(f"$KV.{LANES}.anisora.poison", b"", headers={"KV-Operation": "DEL"})
    # bad switches are ignored one by one; the other keys of `leader` mean nothing
    others = {key for bucket, keys in KEYS.items() if bucket not in (CONTROL, LEADER) for key in keys} | {LEADER_KEY}

    async def all_reported() -> bool:  # each key at least once: a value may be replaced before it is sent to the watch
        return {line["where"] for line in unreadable_lines(gateway)[count:]} >= {key[:200] for key in others}

    await eventually(all_reported)
    second = GatewayProcess(tmp_path, beside=gateway)
    await asyncio.to_thread(second.start)
    try:
        async with httpx.AsyncClient(base_url=second.url, timeout=60) as other:
            for client in (http, other):
                await report_lane(gateway_link, "anisora", LaneState.WARM)
                for path in ("lanes", "queue", "fallbacks", "cold_starts"):
                    answer = await client.get(f"/admin/{path}")
                    assert answer.status_code == 200
                    assert len(answer.content) < 100_000
                assert (await client.get("/tasks")).status_code == 200
                task = await client.post("/generate", json={"model": "anisora", "prompt": "x"})
                assert (task.status_code, task.json()["route"]) == (202, "lane")
    finally:
        await asyncio.to_thread(second.stop)
    for process in (gateway, second):
        assert SECRET not in process.log()
        assert "Traceback" not in process.log()
    unreadable = unreadable_lines(gateway)[count:]
    assert len(unreadable) == len({(line["kind"], line["where"], line["revision"]) for line in unreadable})  # once each
