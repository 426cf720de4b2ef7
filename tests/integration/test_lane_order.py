"""Tasks that wait for a model's lanes start by class and caller (ADR 0042): real loops and lanes on a real server."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.order import Policy
from contracts.settings import Catalog
from contracts.tasks import GenerationTask, Priority, TaskStatus, decode_task
from contracts.topology import LANE_LOOK_MAX, WORK_CONSUMER, lane_stream, work_subject
from lane_worker.runtime import lane_hand
from lane_worker.runtime.lane_hand import LaneHand
from lane_worker.runtime.order import Order
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.degraded import becomes, place, task_of
from tests.kit.lanes import Lane
from tests.kit.steered import Worker
from tests.kit.support import eventually

STREAM = lane_stream("anisora")
INTERACTIVE, STANDARD, BACKGROUND = Priority


def queued(
    number: int, priority: Priority = STANDARD, *, caller: str = "one", model: str = "anisora"
) -> GenerationTask:
    """A task for a lane that came *number* seconds after the first one could have."""
    task = task_of(model, number)
    at = datetime.now(UTC) - timedelta(seconds=20 - number / 10)
    return replace(
        task,
        route="lane",
        priority=priority,
        caller=caller,
        queued_at=at,
        deadline_at=at + timedelta(seconds=30),
    )


def hand_of(link: NatsLink, policy: Policy = Policy()) -> LaneHand:  # noqa: B008 - it is frozen
    return LaneHand(link, STREAM, order=Order(policy, resident=lambda: "anisora"))


async def take(hand: LaneHand) -> GenerationTask:
    found = await eventually(hand.next)  # it may take the server a moment to give what another hand gave back
    assert found is not None
    await found.message.ack()
    return decode_task(found.message.data)


async def waiting(link: NatsLink) -> int:
    return (await js_of(link).stream_info(STREAM)).state.messages


@pytest.fixture
async def worker(link: NatsLink, catalog: Catalog, tmp_path: Path) -> AsyncIterator[Worker]:
    worker = Worker(link, catalog.windows, tmp_path, "one")
    yield worker
    await worker.close()


async def test_an_interactive_task_overtakes_ten_background_ones(link: NatsLink, worker: Worker) -> None:
    """Here on the work loop of a lane, which runs one of them when the others come."""
    first = await place(link, queued(0, BACKGROUND))
    await worker.runner.started.wait()
    background = [await place(link, queued(number, BACKGROUND)) for number in range(1, 11)]
    urgent = await place(link, queued(11, INTERACTIVE))
    worker.runner.may_end.set()
    for task in (urgent, *background):
        await becomes(link, task, TaskStatus.DONE)
    assert [task.id for task in worker.runner.ran] == [task.id for task in (first, urgent, *background)]
    done = await becomes(link, urgent, TaskStatus.DONE)
    assert done.order is not None
    assert sum(group.count for group in done.order.waiting) == 11
    assert done.timeline[0].detail.startswith("attempt 1 by worker-one: no higher class waits")
    alone = await becomes(link, background[-1], TaskStatus.DONE)
    assert alone.order is None, "nothing was chosen: it was the only one"


@pytest.mark.usefixtures("forks", "rogue_forks")
async def test_a_real_lane_takes_the_interactive_task_first(link: NatsLink, catalog: Catalog, tmp_path: Path) -> None:
    """Here with a tiny pipeline, whose lane becomes warm when all tasks wait."""
    background = [await place(link, queued(number, BACKGROUND, model="phr00t")) for number in range(10)]
    urgent = await place(link, queued(11, INTERACTIVE, model="phr00t"))
    lane = Lane(link, catalog, tmp_path)
    lane.start()
    try:
        done = [await becomes(link, task, TaskStatus.DONE, within_s=300) for task in (urgent, *background)]
    finally:
        await lane.leave()
    claimed = sorted(done, key=lambda task: task.claimed_at or datetime.max.replace(tzinfo=UTC))
    assert [task.id for task in claimed] == [task.id for task in (urgent, *background)]


async def test_what_is_not_chosen_goes_to_the_next_lane_at_once(link: NatsLink) -> None:
    """The server redelivers the messages one by one, as the lane hands them back: the next lane may get some first."""
    tasks = [await place(link, queued(number)) for number in range(6)]
    one, two = hand_of(link), hand_of(link)
    try:
        found = await one.next()  # not acked: only this lane has it in its hand
        assert found is not None
        rest = [await take(two) for _ in range(5)]
    finally:
        await one.close()
        await two.close()
    assert decode_task(found.message.data) == tasks[0]
    assert sorted(rest, key=lambda task: task.id) == tasks[1:]

    async def one_is_left() -> bool:
        consumer = await js_of(link).consumer_info(STREAM, WORK_CONSUMER)
        return (consumer.num_ack_pending, await waiting(link)) == (1, 1)

    await eventually(one_is_left)  # the lane does not wait until the server has counted its ack


async def test_two_lanes_serve_each_task_once(link: NatsLink, catalog: Catalog, tmp_path: Path) -> None:
    tasks = [await place(link, queued(number, tuple(Priority)[number % 3])) for number in range(12)]
    workers = [Worker(link, catalog.windows, tmp_path, owner) for owner in ("one", "two")]
    for worker in workers:
        worker.runner.may_end.set()
    try:
        done = [await becomes(link, task, TaskStatus.DONE) for task in tasks]
    finally:
        for worker in workers:
            await worker.close()
    assert {task.attempt for task in done} == {1}
    ran = [task.id for worker in workers for task in worker.runner.ran]
    assert sorted(ran) == sorted(task.id for task in tasks)

    async def none_is_left() -> bool:
        return await waiting(link) == 0

    await eventually(none_is_left)  # no lane waits until the server has counted its ack


async def test_a_caller_with_one_task_goes_before_the_rest_of_one_with_many(link: NatsLink, worker: Worker) -> None:
    many = [await place(link, queued(number, caller="many")) for number in range(5)]
    await worker.runner.started.wait()
    single = await place(link, queued(9, caller="single"))
    worker.runner.may_end.set()
    await becomes(link, many[-1], TaskStatus.DONE)
    ran = [task.id for task in worker.runner.ran]
    # when the first run has ended, its time counts: from then on its caller has had more than the other one
    assert ran.index(single.id) < ran.index(many[-1].id)


async def test_an_overdue_task_is_still_taken(link: NatsLink) -> None:
    """The process that moves its record first wins (ADR 0007)."""
    task = queued(0)
    task = await place(link, replace(task, deadline_at=task.queued_at))
    hand = hand_of(link)
    try:
        assert await take(hand) == task
    finally:
        await hand.close()


async def test_what_cannot_be_read_is_handed_on_and_holds_up_nobody(link: NatsLink) -> None:
    await link.messages.publish(work_subject("lane", "anisora", "x"), b"no task")
    task = await place(link, queued(0))
    hand = hand_of(link)
    try:
        found = await hand.next()
        assert found is not None
        assert (found.message.data, found.order) == (b"no task", None)
        await found.message.term()
        assert await take(hand) == task
    finally:
        await hand.close()


async def test_in_order_of_arrival_where_the_settings_say_so(link: NatsLink) -> None:
    tasks = [await place(link, queued(0, BACKGROUND)), await place(link, queued(1, INTERACTIVE))]
    hand = hand_of(link, Policy(order="fifo"))
    try:
        assert [await take(hand) for _ in tasks] == tasks
    finally:
        await hand.close()


async def test_a_lane_sees_the_oldest_of_a_deep_queue(link: NatsLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at the first LANE_LOOK_MAX messages; a later message is seen as soon as it is among them."""
    monkeypatch.setattr(lane_hand, "ALIKE_S", 0.0)
    deep = [await place(link, queued(number, BACKGROUND)) for number in range(LANE_LOOK_MAX + 1)]
    urgent = await place(link, queued(LANE_LOOK_MAX + 1, INTERACTIVE))
    hand = hand_of(link)
    try:
        taken = [await take(hand) for _ in range(3)]
    finally:
        await hand.close()
    assert taken[0] == deep[0]
    assert urgent in taken


async def test_a_call_that_is_cancelled_loses_no_message(link: NatsLink) -> None:
    hand, other = hand_of(link), hand_of(link)
    try:
        asking = asyncio.create_task(hand.next())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        task = await place(link, queued(0))

        async def comes() -> bool:
            found = await other.next()
            return found is not None and decode_task(found.message.data) == task

        await eventually(comes)
    finally:
        await hand.close()
        await other.close()
