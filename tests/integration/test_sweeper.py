"""Due timers on a real server, with a real gateway and short windows: whatever stops working, a task ends."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from nats.js.errors import NotFoundError

from contracts import lifecycle
from contracts.lanes import LaneState
from contracts.settings import Catalog, load_settings
from contracts.tasks import GenerationTask, TaskStatus, decode_task, encode_task
from contracts.topology import TASKS, lane_stream, work_subject
from ops.nats_link import NatsLink
from ops.provision import provision, wanted
from tests.conftest import KEEP_S
from tests.integration.conftest import GatewayProcess, report_lane
from tests.records import pending_task
from tests.support import eventually, settings_file

WAIT_S, LEASE_S, HEALTH_S = 2.0, 1.0, 2.0


class System:
    """A gateway with short windows, a client of it, and a connection to its server."""

    def __init__(self, gateway: GatewayProcess, link: NatsLink, http: httpx.AsyncClient) -> None:
        self.gateway, self.link, self.http = gateway, link, http

    async def submit(self, **headers: str) -> dict[str, Any]:
        response = await self.http.post("/generate", json={"model": "anisora", "prompt": "x"}, headers=headers)
        assert response.status_code == 202, response.text
        task: dict[str, Any] = response.json()
        return task

    async def record(self, task_id: str) -> tuple[GenerationTask, int]:
        entry = await self.link.get(TASKS, task_id)
        assert entry is not None
        assert entry.value is not None
        return decode_task(entry.value), entry.revision

    async def becomes(self, task_id: str, status: TaskStatus, *, epoch: int) -> GenerationTask:
        async def look() -> GenerationTask | None:
            entry = await self.link.get(TASKS, task_id)
            if entry is None or entry.value is None:
                return None
            task = decode_task(entry.value)
            return task if (task.status, task.epoch) == (status, epoch) else None

        found = await eventually(look)
        assert found is not None
        return found

    async def claim(self, task_id: str) -> GenerationTask:
        """Claims as a worker does that then dies at once: timer, record, and never a word again."""
        task, revision = await self.record(task_id)
        claimed = lifecycle.claim(task, owner="dead", worker="anisora-0", lease_s=LEASE_S, now=datetime.now(UTC))
        at = datetime.now(UTC) + timedelta(seconds=LEASE_S)
        await self.link.set_timer("lease", task_id, at, encode_task(claimed))
        await self.link.update(TASKS, task_id, encode_task(claimed), revision=revision)
        return claimed


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    """A fresh system; the lane of anisora is reported warm once."""
    gateway = GatewayProcess(tmp_path)
    gateway.nats.start()
    settings = settings_file(
        tmp_path,
        wait_limit_s=WAIT_S,
        lease_s=LEASE_S,
        lease_renew_s=0.3,
        heartbeat_s=0.5,
        health_timeout_s=HEALTH_S,
        reconnect_grace_s=0.5,
    )
    link = await NatsLink.connect(gateway.nats.url, name="test")
    await provision(link, wanted(load_settings(settings).catalog("tiny"), keep_s=KEEP_S))
    await asyncio.to_thread(gateway.start, "--settings", str(settings), "--keep", f"{KEEP_S:g}s")
    await report_lane(link, "anisora", LaneState.WARM)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:

        async def ready() -> bool:
            return (await http.get("/readyz")).status_code == 200

        await eventually(ready)
        yield System(gateway, link, http)
    await link.close()
    gateway.stop()
    gateway.nats.stop()


async def test_a_lost_worker_costs_one_attempt_then_the_task(system: System) -> None:
    """Invariants 1 and 3: requeued once at the next epoch, then failed/worker_lost; never forgotten."""
    task = await system.submit()
    await system.claim(task["id"])
    requeued = await system.becomes(task["id"], TaskStatus.PENDING, epoch=1)
    assert (requeued.attempt, requeued.owner) == (1, None)

    async def published() -> bool:
        return any(message.epoch == 1 for message in await _messages(system.link, task["id"]))

    await eventually(published)  # the record moves first
    await system.claim(task["id"])
    failed = await system.becomes(task["id"], TaskStatus.FAILED, epoch=1)
    assert failed.error is not None
    assert (failed.error.code, failed.attempt) == ("worker_lost", 2)


async def _messages(link: NatsLink, task_id: str) -> list[GenerationTask]:
    stream = lane_stream("anisora")
    state = (await link.js.stream_info(stream)).state
    found = []
    for sequence in range(max(1, state.first_seq), state.last_seq + 1):
        stored = await link.stored_message(stream, sequence)
        if stored is not None and stored.subject == work_subject("lane", "anisora", task_id):
            found.append(decode_task(stored.data or b""))
    return found


async def test_a_live_lease_is_left_alone(system: System) -> None:
    """The timer is due, but the record says that the owner renewed: nothing moves."""
    task = await system.submit()
    await system.claim(task["id"])
    current, revision = await system.record(task["id"])
    renewed = replace(current, lease_expires_at=datetime.now(UTC) + timedelta(seconds=60))
    revision = await system.link.update(TASKS, task["id"], encode_task(renewed), revision=revision)
    await system.link.set_timer("lease", task["id"], datetime.now(UTC), encode_task(renewed))

    async def swept() -> bool:
        # the sweeper has answered the due timer with another one at the lease's end
        try:
            stored = await system.link.js.get_last_msg("DEADLINES", f"deadline.set.lease.{task['id']}")
        except NotFoundError:  # the first one is due, and the next is not stored yet
            return False
        schedule = (stored.headers or {})["Nats-Schedule"].removeprefix("@at ")
        return datetime.fromisoformat(schedule) == renewed.lease_expires_at

    await eventually(swept)
    assert await system.record(task["id"]) == (renewed, revision)


async def test_an_overdue_task_waits_on_while_its_lane_works(system: System) -> None:
    task = await system.submit()
    first_deadline = (await system.record(task["id"]))[0].deadline_at

    async def extended() -> bool:
        await report_lane(system.link, "anisora", LaneState.BUSY)
        return (await system.record(task["id"]))[0].deadline_at > first_deadline

    await eventually(extended)
    current, _ = await system.record(task["id"])
    assert (current.status, current.epoch) == (TaskStatus.PENDING, 0)
    assert len(await _messages(system.link, task["id"])) == 1


async def test_an_overdue_task_waits_on_while_its_lane_starts_again(system: System) -> None:
    """A restart with a real checkpoint takes longer than the wait limit: what was accepted is still served."""
    task = await system.submit()
    first_deadline = (await system.record(task["id"]))[0].deadline_at

    async def extended() -> bool:
        await report_lane(system.link, "anisora", LaneState.LOADING)
        return (await system.record(task["id"]))[0].deadline_at > first_deadline

    await eventually(extended)


async def test_a_full_lane_queue_is_503_and_leaves_nothing_behind(system: System) -> None:
    """FR-018 for lanes: the server's own limit refuses, and says which limit it was."""
    stream = lane_stream("anisora")
    info = await system.link.js.stream_info(stream)
    await system.link.js.update_stream(info.config.evolve(max_msgs=2))
    for _ in range(2):
        await system.submit()
    records = (await system.link.js.stream_info("KV_tasks")).state.messages
    refused = await system.http.post("/generate", json={"model": "anisora", "prompt": "x"})
    body = refused.json()
    assert (refused.status_code, body["code"], body["limit"]) == (503, "queue_overloaded", "depth")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await system.link.js.stream_info("KV_tasks")).state.messages == records


async def test_an_overdue_task_of_a_silent_lane_ends_queue_overloaded(system: System) -> None:
    """FR-021: the lane says nothing more; after its health window the task ends, and its message is gone."""
    task = await system.submit()
    failed = await system.becomes(task["id"], TaskStatus.FAILED, epoch=0)
    assert failed.error is not None
    assert (failed.error.code, failed.attempt) == ("queue_overloaded", 0)

    async def gone() -> bool:
        return await _messages(system.link, task["id"]) == []

    await eventually(gone)


async def test_a_task_without_a_record_is_recorded_as_refused(system: System) -> None:
    """The gateway died after the timer and before the record: nobody was answered, and it never runs."""
    task = replace(pending_task(), queued_at=datetime.now(UTC), deadline_at=datetime.now(UTC))
    await system.link.set_timer("admit", task.id, datetime.now(UTC), encode_task(task))
    refused = await system.becomes(task.id, TaskStatus.FAILED, epoch=0)
    assert refused.error is not None
    assert refused.error.code == "queue_overloaded"


async def test_a_requeue_that_was_cut_short_is_completed(system: System) -> None:
    """A sweeper died after it had moved the record and before it published: the timer comes again and publishes."""
    task = await system.submit()
    await system.claim(task["id"])
    current, revision = await system.record(task["id"])
    assert current.decision is not None
    cut_short = lifecycle.requeue(current, decision=current.decision, wait_s=60, now=datetime.now(UTC))
    await system.link.update(TASKS, task["id"], encode_task(cut_short), revision=revision)
    await system.link.set_timer("lease", task["id"], datetime.now(UTC), encode_task(cut_short))

    async def published() -> bool:
        return any(message.epoch == 1 for message in await _messages(system.link, task["id"]))

    await eventually(published)


async def test_a_timer_that_could_not_be_served_comes_again(system: System, catalog: Catalog) -> None:
    """Acked only when another is stored: here the queue is missing for a while, and the requeue still arrives."""
    task = await system.submit()
    stream = lane_stream("anisora")
    await system.claim(task["id"])
    await system.link.js.delete_stream(stream)
    await system.becomes(task["id"], TaskStatus.PENDING, epoch=1)

    async def refused() -> bool:
        await report_lane(system.link, "anisora", LaneState.WARM)
        return "timer_retried" in system.gateway.log()

    await eventually(refused)
    await provision(system.link, wanted(catalog, keep_s=KEEP_S))

    async def published() -> bool:
        await report_lane(system.link, "anisora", LaneState.WARM)
        return any(message.epoch == 1 for message in await _messages(system.link, task["id"]))

    await eventually(published)


async def test_a_refused_key_may_try_again(system: System) -> None:
    first = await system.submit(**{"idempotency-key": "again"})
    await system.becomes(first["id"], TaskStatus.FAILED, epoch=0)
    await report_lane(system.link, "anisora", LaneState.WARM)

    async def ready() -> bool:
        return (await system.http.get("/readyz")).status_code == 200

    await eventually(ready)
    second = await system.submit(**{"idempotency-key": "again"})
    assert second["id"] != first["id"]
    assert (await system.submit(**{"idempotency-key": "again"}))["id"] == second["id"]


async def test_whoever_reads_an_overdue_record_settles_it_first(system: System) -> None:
    """Even when its timer was lost: the record alone is enough (design §4, Timers)."""
    task = replace(
        pending_task(),
        created_at=datetime.now(UTC),
        queued_at=datetime.now(UTC) - timedelta(seconds=60),
        deadline_at=datetime.now(UTC) - timedelta(seconds=30),
    )
    await report_lane(system.link, "anisora", LaneState.DRAINING)

    async def draining() -> bool:
        lanes: list[str] = (await system.http.get("/readyz")).json()["models"]["anisora"]["lanes"]
        return lanes == ["draining"]

    await eventually(draining)
    await system.link.create(TASKS, task.id, encode_task(task))
    answer = (await system.http.get(f"/tasks/{task.id}")).json()
    assert (answer["status"], answer["error"]["code"]) == ("failed", "queue_overloaded")


async def test_a_gateway_that_leaves_answers_those_who_wait(system: System) -> None:
    """SIGTERM: long-polls and event streams are answered and closed, and the process ends by itself with status 0."""
    task = await system.submit()
    waiting = asyncio.create_task(system.http.get(f"/tasks/{task['id']}?wait=60"))
    async with system.http.stream("GET", f"/tasks/{task['id']}/events") as stream:
        lines = stream.aiter_lines()
        assert (await anext(lines)).startswith("id: ")  # it is being served, and the long-poll came before it
        await asyncio.to_thread(system.gateway.stop)
        rest = [line async for line in lines]
    assert "event: task" in rest
    answer = await waiting
    assert (answer.status_code, answer.json()["status"]) == (200, "pending")


async def test_an_unreadable_timer_is_dropped(system: System) -> None:
    await system.link.set_timer("admit", "garbage", datetime.now(UTC), b"\xff")

    async def drained() -> bool:
        return (await system.link.js.stream_info("DEADLINES")).state.messages == 0

    await eventually(drained)
    assert "unreadable_timer" in system.gateway.log()
