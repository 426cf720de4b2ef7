"""Deadlines on a real server, with a real gateway and short windows: a task ends, whatever else fails."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts import lifecycle
from contracts.lanes import LaneState
from contracts.settings import Catalog
from contracts.tasks import GenerationTask, TaskStatus, encode_task
from contracts.topology import DEGRADED_MAX_MSGS, TASKS, bucket_stream, lane_stream
from ops.nats.provisioning import provision, wanted
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess, System, fresh_system, report_lane
from tests.kit.records import NOW, pending_task
from tests.kit.samples import data_uri, picture
from tests.kit.support import KEEP_S, eventually, settings_file

# A task waits no longer than SHORT_WAIT_S where its wait has to end by itself, and else longer than any test takes.
SHORT_WAIT_S, WAIT_S, MARGIN_S, LEASE_S = 3.0, 30.0, 0.5, 1.0
IMAGE = data_uri(picture("PNG"))


def with_windows(folder: Path, *, wait_limit_s: float) -> AbstractAsyncContextManager[System]:
    settings = settings_file(
        folder,
        wait_limit_s=wait_limit_s,
        degraded_margin_s=MARGIN_S,
        lease_s=LEASE_S,
        lease_renew_s=0.3,
        heartbeat_s=0.5,
        health_timeout_s=60.0,
        reconnect_grace_s=0.5,
    )
    return fresh_system(folder, settings)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    """A fresh system; the lane of anisora is reported warm once."""
    async with with_windows(tmp_path, wait_limit_s=WAIT_S) as system:
        await system.lane_is(LaneState.WARM)
        yield system


@pytest.fixture
async def hasty_system(tmp_path: Path) -> AsyncIterator[System]:
    """As `system`, but a task waits no longer than SHORT_WAIT_S."""
    async with with_windows(tmp_path, wait_limit_s=SHORT_WAIT_S) as system:
        await system.lane_is(LaneState.WARM)
        yield system


@pytest.fixture
async def second_gateway(hasty_system: System, tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    """Another gateway of `hasty_system`."""
    folder = tmp_path / "second"
    folder.mkdir()
    gateway = GatewayProcess(folder, beside=hasty_system.gateway)
    await asyncio.to_thread(gateway.start, "--settings", str(tmp_path / "settings.json"), "--keep", f"{KEEP_S:g}s")
    yield gateway
    gateway.stop()


async def rewrite(system: System, task_id: str, **changes: datetime) -> GenerationTask:
    task, revision = await system.record(task_id)
    changed = replace(task, **changes)
    await system.link.entries.update(TASKS, task_id, encode_task(changed), revision=revision)
    return changed


async def end_wait(system: System, task_id: str) -> None:
    """Moves the deadline of a task that waits to this moment."""
    await rewrite(system, task_id, deadline_at=datetime.now(UTC))


async def test_a_lost_worker_costs_one_attempt_then_the_task(system: System) -> None:
    """Invariants 1 and 3: a gateway requeues the task once at the next epoch, then fails it as worker_lost. It never
    forgets the task."""
    task = await system.submit()
    await system.claim(task["id"], lease_s=LEASE_S)
    requeued = await system.becomes(task["id"], TaskStatus.PENDING, epoch=1)
    assert (requeued.attempt, requeued.owner) == (1, None)

    async def published() -> bool:
        return any(message.epoch == 1 for message in await system.messages("lane", task["id"]))

    await eventually(published)  # the record moves first
    await system.claim(task["id"], lease_s=LEASE_S)
    failed = await system.becomes(task["id"], TaskStatus.FAILED, epoch=1)
    assert failed.error is not None
    assert (failed.error.code, failed.attempt) == ("worker_lost", 2)


async def test_a_live_lease_is_left_alone(system: System) -> None:
    """The lease's old end comes, but the owner has renewed the lease meanwhile: nothing moves."""
    task, other = await system.submit(), await system.submit()
    os.kill(system.gateway.pid, signal.SIGSTOP)  # or on a slow machine the old end might come before the renewal
    claimed = await system.claim(task["id"], lease_s=LEASE_S)
    renewed = await rewrite(system, task["id"], lease_expires_at=datetime.now(UTC) + timedelta(seconds=60))
    _, revision = await system.record(task["id"])
    os.kill(system.gateway.pid, signal.SIGCONT)
    # a task whose lease ends later is lost, so the old end of this one has passed, too
    lost = await system.claim(other["id"], lease_s=LEASE_S)
    assert (lost.lease_expires_at or NOW) > (claimed.lease_expires_at or NOW)
    await system.becomes(other["id"], TaskStatus.PENDING, epoch=1)
    assert await system.record(task["id"]) == (renewed, revision)


async def test_an_overdue_lane_task_is_rerouted_once(hasty_system: System, second_gateway: GatewayProcess) -> None:
    """FR-021 c, with two gateways: the task is moved once, and no message stays behind. Then the wait limit ends it."""
    tasks = [(await hasty_system.post()).json() for _ in range(5)]
    for task in tasks:
        failed = await hasty_system.becomes(task["id"], TaskStatus.FAILED, epoch=1)
        assert [line.event for line in failed.timeline] == ["accepted", "reroute", "fail"]
        assert (failed.route, failed.attempt, failed.promised) == ("degraded", 0, True)
        assert failed.decision is not None
        assert (failed.decision.outcome, failed.decision.lanes_passed) == ("degraded: capacity", True)
        assert failed.deadline_at - failed.queued_at == timedelta(seconds=SHORT_WAIT_S - MARGIN_S)
        assert failed.error is not None
        assert (failed.error.code, failed.was_refused) == ("queue_overloaded", True)

    async def gone() -> bool:
        return await hasty_system.depth() == await hasty_system.depth(lane_stream("anisora")) == 0

    await eventually(gone)
    logs = hasty_system.gateway.log() + second_gateway.log()
    assert logs.count("task_rerouted") == len(tasks)
    assert "look_failed" not in logs


async def test_a_rerouted_task_is_taken_by_the_degraded_worker(system: System) -> None:
    """The worker gets the task's image too, which only a refusal removes."""
    task = await system.submit(image=IMAGE)
    await end_wait(system, task["id"])
    await system.becomes(task["id"], TaskStatus.PENDING, epoch=1)

    async def published() -> list[GenerationTask]:
        return await system.messages("degraded", task["id"])

    [message] = await eventually(published)
    assert (message.epoch, message.route) == (1, "degraded")
    claimed = await system.claim(task["id"])
    assert (claimed.attempt, claimed.epoch) == (1, 1)

    async def moved() -> bool:
        return await system.messages("lane", task["id"]) == []

    await eventually(moved)
    assert list(system.gateway.artifacts.rglob(f"{task['id']}.*"))


async def test_a_reroute_that_was_cut_short_is_completed(system: System) -> None:
    """A gateway died after it had moved the record, and before it published the message."""
    task = await system.submit()
    current, revision = await system.record(task["id"])
    assert current.decision is not None
    cut_short = lifecycle.reroute(current, decision=current.decision, wait_s=60, now=datetime.now(UTC))
    await system.link.entries.update(TASKS, task["id"], encode_task(cut_short), revision=revision)

    async def published() -> bool:
        return [message.epoch for message in await system.messages("degraded", task["id"])] == [1]

    await eventually(published)


async def test_a_reroute_into_a_full_queue_ends_queue_overloaded(system: System) -> None:
    """10077 is final for the task: its caller got `202` long ago, so the task carries the code (ADR 0008)."""
    task = await system.submit(image=IMAGE)
    await system.fill()
    await end_wait(system, task["id"])
    failed = await system.becomes(task["id"], TaskStatus.FAILED, epoch=1)
    assert failed.error is not None
    assert (failed.error.code, failed.attempt, failed.route) == ("queue_overloaded", 0, "degraded")

    async def nothing_left() -> bool:
        return await system.messages("lane", task["id"]) == [] and not list(system.gateway.artifacts.rglob("*.*"))

    await eventually(nothing_left)
    assert await system.depth() == DEGRADED_MAX_MSGS


async def test_a_requeue_goes_where_there_is_room_now(system: System) -> None:
    """FR-020 is decided again: the lane is gone, so the degraded worker gets the second attempt."""
    task = await system.submit()
    await system.lane_is(LaneState.DRAINING)
    await system.claim(task["id"], lease_s=LEASE_S)
    requeued = await system.becomes(task["id"], TaskStatus.PENDING, epoch=1)
    assert (requeued.route, requeued.attempt) == ("degraded", 1)
    assert requeued.deadline_at - requeued.queued_at == timedelta(seconds=WAIT_S - MARGIN_S)


async def test_a_requeue_into_a_full_queue_ends_worker_lost(system: System) -> None:
    task = await system.submit()
    await system.lane_is(LaneState.DRAINING)
    await system.fill()
    await system.claim(task["id"], lease_s=LEASE_S)
    failed = await system.becomes(task["id"], TaskStatus.FAILED, epoch=1)
    assert failed.error is not None
    assert (failed.error.code, failed.attempt) == ("worker_lost", 1)


async def test_a_task_that_nobody_takes_ends_queue_overloaded(system: System) -> None:
    """After a 202 the code moves into the task (ADR 0008). Its image is removed, and its key may be used again."""
    await system.lane_is(LaneState.DRAINING)
    task = await system.submit(image=IMAGE, **{"idempotency-key": "patient"})
    assert (task["route"], task["status"]) == ("degraded", "pending")
    await end_wait(system, task["id"])
    failed = await system.becomes(task["id"], TaskStatus.FAILED, epoch=0)
    assert failed.error is not None
    assert (failed.error.code, failed.attempt) == ("queue_overloaded", 0)

    async def nothing_left() -> bool:
        return await system.depth() == 0 and not list(system.gateway.artifacts.rglob("*.*"))

    await eventually(nothing_left)
    again = await system.submit(image=IMAGE, **{"idempotency-key": "patient"})
    assert again["id"] != task["id"]
    assert (await system.submit(image=IMAGE, **{"idempotency-key": "patient"}))["id"] == again["id"]


async def test_a_held_request_that_nobody_takes_is_503(hasty_system: System) -> None:
    """FR-018: the answer names the limit and when to retry. The record says the same (SC-008)."""
    await hasty_system.lane_is(LaneState.DRAINING)
    answers = await asyncio.gather(*(hasty_system.post(image=IMAGE) for _ in range(3)))
    for answer in answers:
        body = answer.json()
        assert (answer.status_code, body["code"], body["limit"]) == (503, "queue_overloaded", "wait")
        assert int(answer.headers["retry-after"]) >= 1
        failed, _ = await hasty_system.record(body["instance"].removeprefix("/tasks/"))
        assert failed.error is not None
        assert (failed.error.code, failed.attempt, failed.promised) == ("queue_overloaded", 0, False)

    async def nothing_left() -> bool:
        return await hasty_system.depth() == 0 and not list(hasty_system.gateway.artifacts.rglob("*.*"))

    await eventually(nothing_left)


async def test_a_held_request_whose_server_is_away_is_503_with_an_unknown_outcome(hasty_system: System) -> None:
    await hasty_system.lane_is(LaneState.DRAINING)
    post = asyncio.create_task(hasty_system.post())
    task_id = await hasty_system.only_task()
    hasty_system.gateway.nats.kill()
    answer = await post
    body = answer.json()
    assert (answer.status_code, body["code"], body["outcome"]) == (503, "transport_unavailable", "unknown")
    hasty_system.gateway.nats.start()

    async def back() -> bool:
        return hasty_system.link.connection.is_connected

    await eventually(back)
    failed = await hasty_system.becomes(task_id, TaskStatus.FAILED, epoch=0)
    assert failed.was_refused


async def test_a_requeue_that_was_cut_short_is_completed(system: System) -> None:
    """A gateway died after it had moved the record, and before it published: another one publishes 2 s later."""
    task = await system.submit()
    await system.claim(task["id"])
    current, revision = await system.record(task["id"])
    assert current.decision is not None
    cut_short = lifecycle.requeue(current, route="lane", decision=current.decision, wait_s=60, now=datetime.now(UTC))
    await system.link.entries.update(TASKS, task["id"], encode_task(cut_short), revision=revision)

    async def published() -> bool:
        return any(message.epoch == 1 for message in await system.messages("lane", task["id"]))

    await eventually(published)


async def test_a_look_that_came_to_nothing_is_repeated(system: System, catalog: Catalog) -> None:
    """Here the queue's stream is missing for a while, and the requeue still arrives."""
    task = await system.submit()
    await system.claim(task["id"])
    await js_of(system.link).delete_stream(lane_stream("anisora"))
    await rewrite(system, task["id"], lease_expires_at=datetime.now(UTC))
    await system.becomes(task["id"], TaskStatus.PENDING, epoch=1)

    async def refused() -> bool:
        await report_lane(system.link, "anisora", LaneState.WARM)
        return "look_retried" in system.gateway.log()

    await eventually(refused)
    await provision(system.link, wanted(catalog, keep_s=KEEP_S))

    async def published() -> bool:
        await report_lane(system.link, "anisora", LaneState.WARM)
        # on the lane, or on the degraded queue if the wait was over before the lane's queue was back
        both = [*await system.messages("lane", task["id"]), *await system.messages("degraded", task["id"])]
        return any(message.epoch >= 1 for message in both)

    await eventually(published)


@pytest.mark.parametrize(
    ("route", "expected"),
    [("degraded", ("failed", "degraded", "queue_overloaded")), ("lane", ("pending", "degraded", None))],
)
async def test_a_reader_of_an_overdue_record_settles_it_first(
    system: System, route: str, expected: tuple[str, str, str | None]
) -> None:
    """The record alone is enough (design §4, Deadlines)."""
    now = datetime.now(UTC)
    queued_at, deadline_at = now - timedelta(seconds=60), now - timedelta(seconds=30)
    task = pending_task(route=route, created_at=now, queued_at=queued_at, deadline_at=deadline_at)
    await system.link.entries.create(TASKS, task.id, encode_task(task))
    answer = (await system.http.get(f"/tasks/{task.id}")).json()
    error = answer["error"]["code"] if answer["error"] else None
    assert (answer["status"], answer["route"], error) == expected


async def test_a_gateway_that_leaves_answers_those_who_wait(system: System) -> None:
    """SIGTERM: long-polls and event streams are answered and closed, and the process ends by itself with status 0."""
    task = await system.submit()
    waiting = asyncio.create_task(system.http.get(f"/tasks/{task['id']}?wait=60"))
    async with system.http.stream("GET", f"/tasks/{task['id']}/events") as stream:
        lines = stream.aiter_lines()
        async for line in lines:
            if line.startswith("id: "):
                break  # the stream is being served, and the long-poll came before it
        await asyncio.to_thread(system.gateway.stop)
        rest = [line async for line in lines]
    assert "event: task" in rest
    answer = await waiting
    assert (answer.status_code, answer.json()["status"]) == (200, "pending")


async def test_a_gateway_that_starts_finds_what_was_left(system: System) -> None:
    """No gateway lived when the deadlines came: one task was moved and not published, one waited, one lost a worker."""
    moved, waits, runs = [await system.submit() for _ in range(3)]
    await system.claim(moved["id"], lease_s=60)
    await system.claim(runs["id"], lease_s=0.1)
    await asyncio.to_thread(system.gateway.stop)
    current, revision = await system.record(moved["id"])
    assert current.decision is not None
    again = lifecycle.requeue(current, route="lane", decision=current.decision, wait_s=60, now=datetime.now(UTC))
    await system.link.entries.update(TASKS, moved["id"], encode_task(again), revision=revision)
    await end_wait(system, waits["id"])
    options = ("--settings", str(system.gateway.folder / "settings.json"), "--keep", f"{KEEP_S:g}s")
    await asyncio.to_thread(system.gateway.start, *options)

    async def published() -> bool:
        return [message.epoch for message in await system.messages("lane", moved["id"])] == [1]

    await eventually(published)
    await system.becomes(waits["id"], TaskStatus.PENDING, epoch=1)
    await end_wait(system, waits["id"])
    await system.becomes(waits["id"], TaskStatus.FAILED, epoch=1)
    await system.becomes(runs["id"], TaskStatus.PENDING, epoch=1)


async def test_a_gateway_whose_watch_cannot_follow_says_so(hasty_system: System, catalog: Catalog) -> None:
    """The gateway then looks at no task, and is not ready."""
    await js_of(hasty_system.link).delete_stream(bucket_stream(TASKS))

    async def troubles() -> list[str]:
        ready = await hasty_system.http.get("/readyz")
        found: list[str] = ready.json()["troubles"]
        assert not found or ready.status_code == 503
        return found

    async def is_logged() -> bool:
        return any("the watch of KV tasks is" in trouble for trouble in await troubles())

    await eventually(is_logged)
    await provision(hasty_system.link, wanted(catalog, keep_s=KEEP_S))

    async def is_well() -> bool:
        return await troubles() == []

    await eventually(is_well)
    task = await hasty_system.submit()
    await hasty_system.becomes(task["id"], TaskStatus.FAILED, epoch=1)
