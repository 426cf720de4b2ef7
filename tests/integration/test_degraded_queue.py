"""What the degraded queue accepts and refuses, by the server's own limit (FR-014, FR-016..018)."""

import asyncio
from collections import Counter
from datetime import UTC, datetime

import httpx
import pytest

from contracts import lifecycle
from contracts.lanes import LaneState
from contracts.tasks import FailureCode, TaskStatus, encode_task
from contracts.topology import CONTROL, DEGRADED, DEGRADED_MAX_MSGS, TASKS, bucket_stream, lane_stream
from gateway.placing.overload import FULL_FOR_S, is_known_full
from tests.kit.behind import js_of
from tests.kit.gateway import System
from tests.kit.samples import data_uri, picture
from tests.kit.support import eventually

IMAGE = data_uri(picture("PNG"))


@pytest.fixture
def system(bare_system: System) -> System:
    return bare_system


async def written(system: System) -> tuple[object, ...]:
    """The states of all streams to which a request could write."""
    streams = [DEGRADED, bucket_stream(TASKS), lane_stream("anisora")]
    states = [(await js_of(system.link).stream_info(name)).state for name in streams]
    return *(state.last_seq for state in states), sorted(system.gateway.artifacts.rglob("*"))


def limit(response: httpx.Response) -> str:
    body = response.json()
    assert (response.status_code, body["code"]) == (503, "queue_overloaded")
    assert int(response.headers["retry-after"]) >= 1
    return str(body["limit"])


async def test_25_wait_and_the_26th_is_refused(system: System) -> None:
    """SC-008, and invariant 6: a refusal leaves nothing behind, and its key may be used again."""
    tasks = [await system.submit() for _ in range(DEGRADED_MAX_MSGS)]
    assert {(task["route"], task["status"]) for task in tasks} == {("degraded", "pending")}
    before = await written(system)
    for headers in ({}, {"prefer": "respond-async"}, {"idempotency-key": "the-26th"}):
        assert limit(await system.post(image=IMAGE, **headers)) == "depth"
    assert await written(system) == before
    assert await system.depth() == DEGRADED_MAX_MSGS
    await system.claim(tasks[0]["id"])

    async def is_known() -> bool:  # until then the gateway may refuse without asking: it was just told that 25 wait
        return bool((await system.http.get(f"/tasks/{tasks[0]['id']}")).json()["status"] == "processing")

    await eventually(is_known)
    assert (await system.submit(image=IMAGE, **{"idempotency-key": "the-26th"}))["status"] == "pending"


@pytest.mark.parametrize(
    ("waiting", "refused_ago_s", "news_age_s", "expected"),
    [
        (DEGRADED_MAX_MSGS, FULL_FOR_S / 2, 0.0, True),
        (DEGRADED_MAX_MSGS, FULL_FOR_S, 0.0, False),  # an operator may have emptied the queue, whose records stay
        (DEGRADED_MAX_MSGS - 1, FULL_FOR_S / 2, 0.0, False),
        (DEGRADED_MAX_MSGS, FULL_FOR_S / 2, 0.5, False),  # cut off: the gateway does not know how many wait
    ],
)
def test_a_queue_that_was_full_just_now_is_not_asked(
    waiting: int, refused_ago_s: float, news_age_s: float, expected: bool
) -> None:
    """A busy gateway answers refusals more often than anything else."""
    assert is_known_full(waiting=waiting, refused_ago_s=refused_ago_s, news_age_s=news_age_s) is expected


@pytest.mark.parametrize("state", [LaneState.STARTING, LaneState.LOADING, LaneState.EVICTED])
async def test_a_cold_lane_is_not_waited_for_and_the_limit_holds(state: LaneState, system: System) -> None:
    """After a deploy, a scale-up or an eviction no model is loaded. The answers are the same each time (FR-020,
    FR-017)."""
    await system.lane_is(state)
    try:
        tasks = [await system.submit() for _ in range(2)]
        records = [(await system.record(task["id"]))[0] for task in tasks]
        assert [record.decision and record.decision.outcome for record in records] == ["degraded: capacity"] * 2
        assert await system.depth(lane_stream("anisora")) == 0
        await system.fill()
        assert limit(await system.post()) == "depth"
        assert await system.depth() == DEGRADED_MAX_MSGS
    finally:
        await system.lane_is(LaneState.DRAINING)


async def test_of_a_burst_of_60_exactly_25_are_held(system: System) -> None:
    posts = [asyncio.create_task(system.post("phr00t")) for _ in range(60)]

    async def refused() -> bool:
        return sum(post.done() for post in posts) == 60 - DEGRADED_MAX_MSGS

    await eventually(refused)
    assert Counter(limit(post.result()) for post in posts if post.done()) == {"depth": 60 - DEGRADED_MAX_MSGS}
    assert await system.depth() == DEGRADED_MAX_MSGS
    held = [post for post in posts if not post.done()]
    for post in held:
        post.cancel()  # this closes its connection
    await asyncio.gather(*held, return_exceptions=True)

    async def free() -> bool:
        return await system.depth() == 0

    await eventually(free)


async def test_a_full_lane_queue_leads_to_the_degraded_one(system: System) -> None:
    """Rule 4 of routing: a task that the lane's own queue refuses goes there, and the decision says so."""
    await system.lane_is(LaneState.WARM)
    stream = lane_stream("anisora")
    config = (await js_of(system.link).stream_info(stream)).config
    await js_of(system.link).update_stream(config.evolve(max_msgs=1))
    try:
        assert (await system.submit())["route"] == "lane"
        task = await system.submit()
        assert task["route"] == "degraded"
        record, _ = await system.record(task["id"])
        assert record.decision is not None
        assert (record.decision.outcome, record.decision.lanes_passed) == ("degraded: capacity", True)
        assert await system.messages("lane", task["id"]) == []
        assert [message.epoch for message in await system.messages("degraded", task["id"])] == [0]
        await system.fill()
        assert limit(await system.post()) == "depth"
    finally:
        await js_of(system.link).update_stream(config)
        await js_of(system.link).purge_stream(stream)
        await system.lane_is(LaneState.DRAINING)


async def test_the_operators_switch_sends_everything_to_the_degraded_queue(system: System) -> None:
    await system.lane_is(LaneState.WARM)
    await system.link.entries.put(CONTROL, "lanes.anisora", b"degraded")
    try:

        async def switched() -> bool:
            return bool((await system.submit())["route"] == "degraded")

        await eventually(switched)
        record, _ = await system.record((await system.submit())["id"])
        assert record.decision is not None
        assert (record.decision.outcome, record.decision.forced_degraded) == ("degraded: manual", True)
    finally:
        await system.link.entries.put(CONTROL, "lanes.anisora", b"auto")
        await system.lane_is(LaneState.DRAINING)


async def test_a_held_request_is_answered_when_a_worker_has_claimed_it(system: System) -> None:
    post = asyncio.create_task(system.post("phr00t", image=None, **{"idempotency-key": "claimed"}))
    task_id = await system.only_task()
    record, _ = await system.record(task_id)
    assert (record.status, record.route, record.promised) == (TaskStatus.PENDING, "degraded", False)
    assert (record.deadline_at - record.queued_at).total_seconds() == 29.5
    assert not post.done()
    await system.claim(task_id)
    answer = await post
    assert (answer.status_code, answer.json()["id"], answer.json()["status"]) == (202, task_id, "processing")
    assert answer.headers["location"] == f"/tasks/{task_id}"
    assert "preference-applied" not in answer.headers
    again = await system.post("phr00t", **{"idempotency-key": "claimed"})
    assert (again.status_code, again.json()["id"]) == (202, task_id)


async def test_respond_async_is_answered_at_once(system: System) -> None:
    answer = await system.post(**{"prefer": "handling=lenient, Respond-Async"})
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert answer.headers["preference-applied"] == "respond-async"
    record, _ = await system.record(answer.json()["id"])
    assert record.promised


async def test_a_client_waits_no_longer_than_it_prefers(system: System) -> None:
    """Its request waits neither until a worker takes the task nor until the end. From then on the task is promised."""
    for prefer, said in (("wait=1", "wait=1"), ("respond-async, wait=0", "respond-async, wait=0")):
        answer = await system.post(prefer=prefer)
        assert (answer.status_code, answer.json()["status"]) == (202, "pending")
        assert answer.headers["preference-applied"] == said
        record, _ = await system.record(answer.json()["id"])
        assert record.promised


async def test_a_client_that_prefers_to_wait_is_answered_with_the_end(system: System) -> None:
    post = asyncio.create_task(system.post(**{"prefer": "wait=600", "idempotency-key": "to-the-end"}))
    task_id = await system.only_task()
    claimed = await system.claim(task_id)
    assert not post.done()
    _, revision = await system.record(task_id)
    failed = lifecycle.fail(claimed, code=FailureCode.INFERENCE_FAILED, message="it broke", now=datetime.now(UTC))
    revision = await system.link.entries.update(TASKS, task_id, encode_task(failed), revision=revision)
    answer = await post
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert answer.headers["preference-applied"] == "wait=60"
    assert (answer.headers["etag"], answer.headers["location"]) == (f'"{revision}"', f"/tasks/{task_id}")


async def test_a_held_request_whose_task_is_cancelled_is_answered_with_it(system: System) -> None:
    post = asyncio.create_task(system.post())
    task_id = await system.only_task()
    assert (await system.http.delete(f"/tasks/{task_id}")).status_code == 200
    answer = await post
    assert (answer.status_code, answer.json()["error"]["code"]) == (202, "cancelled")
    assert await system.depth() == 0
