"""nats-server loses what it stored last, or a bucket is made again: a gateway then answers nothing from memory that the
server does not have, and sees everything that is written afterwards."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from contracts.keys import Presented
from contracts.lanes import LaneState
from contracts.settings import load_settings
from contracts.tasks import TaskStatus
from contracts.topology import CONTROL, KEYS, TASKS, bucket_stream, control_key
from ops.nats.api_keys import add, revoke
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.kit.behind import js_of
from tests.kit.gateway import System, fresh_system, report_lane
from tests.kit.support import BOUND_S, KEEP_S, eventually, settings_file

BODY: Final = {"model": "anisora", "prompt": "x"}


async def make_key(link: NatsLink, caller: str) -> Presented:
    return await add(link, caller, ("admin",), rate_per_s=None, burst_s=60, now=datetime.now(UTC))


def by(presented: Presented) -> dict[str, str]:
    return {"authorization": f"Bearer {presented.text}"}


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    """A gateway that trusts its lanes' reports for long enough, and requires keys."""
    async with fresh_system(tmp_path, settings_file(tmp_path)) as system:
        yield system


async def gets(system: System, path: str, presented: Presented, status: int) -> httpx.Response:
    """The first answer with *status*."""

    async def answer() -> httpx.Response | None:
        got = await system.http.get(path, headers=by(presented))
        return got if got.status_code == status else None

    got = await eventually(answer)
    assert got is not None
    return got


async def when_back(call: Callable[[], Awaitable[Any]]) -> Any:
    """What *call* returns, as soon as the server is back."""

    async def tried() -> tuple[Any] | None:
        try:
            return (await call(),)
        except TransportUnavailable:
            return None

    found = await eventually(tried)
    assert found is not None
    return found[0]


class Tail:
    """What the test writes before and after the copy."""

    def __init__(self, system: System) -> None:
        self.system, self.link, self.http = system, system.link, system.http

    async def write_what_stays(self) -> None:
        self.leaked = await make_key(self.link, "leaked")
        self.operator = await make_key(self.link, "operator")
        await gets(self.system, "/tasks", self.operator, 200)
        await report_lane(self.link, "anisora", LaneState.WARM)
        await eventually(self._is_routed)
        self.ended = await self.submit("ended")

    async def _is_routed(self) -> bool:
        lanes = (await self.http.get("/readyz")).json()["models"]["anisora"]["lanes"]
        return bool(lanes == ["warm"])

    async def submit(self, key: str) -> str:
        answer = await self.http.post(
            "/generate", json=BODY, headers=by(self.operator) | {"prefer": "respond-async", "idempotency-key": key}
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def write_what_is_lost(self) -> None:
        for n in range(3):
            await make_key(self.link, f"lost-{n}")
        await self.link.entries.put(CONTROL, control_key("phr00t"), b"degraded")
        self.lost = await self.submit("lost")
        cancelled = await self.http.delete(f"/tasks/{self.ended}", headers=by(self.operator))
        assert cancelled.json()["status"] == "failed"
        await self.submit("another")


async def test_a_power_cut_that_lost_a_tail(system: System, tmp_path: Path) -> None:
    tail = Tail(system)
    nats = system.gateway.nats
    await tail.write_what_stays()
    await asyncio.to_thread(nats.copy_store, tmp_path / "copy")
    await tail.write_what_is_lost()

    async def switched() -> bool:
        answer = await system.http.get("/admin/lanes/phr00t/mode", headers=by(tail.operator))
        return bool(answer.json()["mode"] == "degraded")

    await eventually(switched)
    events: list[str] = []

    async def follow() -> None:
        async with system.http.stream("GET", f"/tasks/{tail.lost}/events", headers=by(tail.operator)) as stream:
            async for line in stream.aiter_lines():
                events.append(line)

    following = asyncio.create_task(follow())
    waiting = asyncio.create_task(system.http.get(f"/tasks/{tail.lost}?wait=55", headers=by(tail.operator)))

    async def is_followed() -> bool:
        return bool(events)

    await eventually(is_followed)
    await asyncio.to_thread(nats.lose_tail, tmp_path / "copy")

    # a client that waits for a lost task gets 404
    assert (await asyncio.wait_for(waiting, BOUND_S)).status_code == 404
    await asyncio.wait_for(following, BOUND_S)
    await gets(system, f"/tasks/{tail.lost}", tail.operator, 404)
    # the gateway answers what the server has again, and sees what moves there
    answer = await gets(system, f"/tasks/{tail.ended}", tail.operator, 200)
    assert (answer.json()["status"], "age" in answer.headers) == ("pending", False)
    listed = (await system.http.get("/tasks", headers=by(tail.operator))).json()["tasks"]
    assert [task["id"] for task in listed] == [tail.ended]
    await when_back(lambda: system.record(tail.ended))  # the gateway's connection may be back before the test's
    claimed = await system.claim(tail.ended)
    assert claimed.status is TaskStatus.PROCESSING

    async def is_processing() -> bool:
        got = await system.http.get(f"/tasks/{tail.ended}", headers=by(tail.operator))
        return bool(got.json()["status"] == "processing")

    await eventually(is_processing)
    # the key of a lost task makes it again: a record and a message
    assert await tail.submit("lost") == tail.lost
    record, _ = await system.record(tail.lost)
    assert record.status is TaskStatus.PENDING
    assert len(await system.messages("lane", tail.lost)) == 1
    # revoking a key works, a new key counts, and the switch is what the server has
    await when_back(lambda: revoke(system.link, tail.leaked.id, now=datetime.now(UTC)))
    await gets(system, "/tasks", tail.leaked, 401)
    await gets(system, "/tasks", await make_key(system.link, "new"), 200)

    async def is_back() -> bool:  # each bucket is read again at a moment of its own
        answer = await system.http.get("/admin/lanes/phr00t/mode", headers=by(tail.operator))
        return bool(answer.json()["mode"] == "auto")

    await eventually(is_back)
    said = [json.loads(line) for line in system.gateway.log().splitlines() if "stream_went_back" in line]
    assert {KEYS, TASKS, CONTROL} <= {line["bucket"] for line in said}
    metrics = (await system.http.get("/metrics", headers=by(tail.operator))).text
    assert f'warmlane_streams_went_back_total{{bucket="{TASKS}"}} 1.0' in metrics


async def test_buckets_that_were_made_anew(system: System) -> None:
    """`nats stream rm` and `warmlane provision`, while the connection stays up."""
    tail = Tail(system)
    await tail.write_what_stays()
    for bucket in (TASKS, KEYS):
        await js_of(system.link).delete_stream(bucket_stream(bucket))
    await provision(system.link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
    await gets(system, "/tasks", tail.operator, 401)
    tail.operator = await make_key(system.link, "operator")
    await gets(system, "/tasks", tail.operator, 200)

    async def is_forgotten() -> bool:
        listed = await system.http.get("/tasks", headers=by(tail.operator))
        return bool(listed.json()["tasks"] == [])

    await eventually(is_forgotten)
    task_id = await tail.submit("new")
    await system.claim(task_id)

    async def is_processing() -> bool:
        got = await system.http.get(f"/tasks/{task_id}", headers=by(tail.operator))
        return bool(got.json()["status"] == "processing")

    await eventually(is_processing)


async def test_every_watch_lives_on_when_its_consumer_is_deleted(system: System) -> None:
    """For each bucket that a gateway follows, twice: a repaired watch can be repaired again."""
    tail = Tail(system)
    await tail.write_what_stays()
    for state in (LaneState.DRAINING, LaneState.WARM):
        streams = await js_of(system.link).streams_info()
        for name in [info.config.name for info in streams if str(info.config.name).startswith("KV_")]:
            for consumer in await js_of(system.link).consumers_info(str(name)):
                await js_of(system.link).delete_consumer(str(name), consumer.name)
        await report_lane(system.link, "anisora", state)
        wanted_mode = "degraded" if state is LaneState.DRAINING else "auto"
        await system.link.entries.put(CONTROL, control_key("anisora"), wanted_mode.encode())
        new = await make_key(system.link, f"new-{state.value}")

        async def all_is_seen(state: LaneState = state, mode: str = wanted_mode, new: Presented = new) -> bool:
            ready = (await system.http.get("/readyz")).json()
            response = await system.http.get("/admin/lanes/anisora/mode", headers=by(new))
            return (
                response.status_code == 200
                and response.json()["mode"] == mode
                and ready["models"]["anisora"]["lanes"] == [state.value]
            )

        await eventually(all_is_seen)
    await system.claim(tail.ended)

    async def is_processing() -> bool:
        got = await system.http.get(f"/tasks/{tail.ended}", headers=by(tail.operator))
        return bool(got.json()["status"] == "processing")

    await eventually(is_processing)
