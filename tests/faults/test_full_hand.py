"""The leader of the degraded queue is killed with a full hand: the server gives all of it to the standby, and counts
every place as before (ADR 0038)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from contracts.tasks import GenerationTask, TaskStatus, encode_task
from contracts.topology import DEGRADED, DEGRADED_MAX_MSGS, WORK_CONSUMER, consumer_on, work_subject
from ops.nats.errors import StreamFull
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.degraded import DegradedProcess, becomes, leader_of, place, task_of
from tests.kit.support import NatsServer, eventually, shared_forks

pytestmark = pytest.mark.usefixtures("forks")

SLOT: Final = "cpu-0"
# With steps this long, no task ends while the test looks.
SLOW: Final = ("--step-seconds", "10", "--degraded-order", "fifo")
NAMES: Final = ("first", "second")


@pytest.fixture
async def workers(nats_server: NatsServer, link: NatsLink, tmp_path: Path) -> AsyncIterator[list[DegradedProcess]]:
    """The leader, then its standby."""
    options = shared_forks()
    found = [DegradedProcess(nats_server.address, tmp_path, name, SLOT, *SLOW, **options) for name in NAMES]
    try:
        leadership = await eventually(lambda: leader_of(link), within_s=120)
        assert leadership is not None
        found.sort(key=lambda worker: worker.name != leadership.worker)

        async def stands_by() -> bool:
            return bool(found[1].log_lines("stands_by"))

        await eventually(stands_by, within_s=120)
        yield found
    finally:
        for worker in found:
            worker.kill()


async def depth(link: NatsLink) -> int:
    return (await js_of(link).stream_info(DEGRADED)).state.messages


async def refuses(link: NatsLink, number: int) -> bool:
    """Whether the server refuses one more task."""
    task = task_of("anisora", number)
    try:
        await link.messages.publish(work_subject("degraded", task.model, task.id), encode_task(task))
    except StreamFull:
        return True
    return False


async def test_a_leader_that_is_killed_with_a_full_hand_gives_all_of_it_back(
    link: NatsLink, workers: list[DegradedProcess]
) -> None:
    leader, standby = workers
    running = await becomes(link, await place(link, task_of("anisora", 0)), TaskStatus.PROCESSING)
    assert running.worker == leader.name
    tasks = [await place(link, task_of("anisora", number)) for number in range(1, DEGRADED_MAX_MSGS + 1)]

    async def in_hand() -> bool:
        consumer = await js_of(link).consumer_info(DEGRADED, WORK_CONSUMER)
        return (consumer.num_ack_pending, consumer.num_pending) == (DEGRADED_MAX_MSGS, 0)

    await eventually(in_hand)
    assert await refuses(link, 99)
    leader.kill()
    assert await depth(link) == DEGRADED_MAX_MSGS
    assert await refuses(link, 99), "what was in the hand of the dead keeps its place"

    async def all_given_again() -> bool:
        consumer = await js_of(link).consumer_info(DEGRADED, WORK_CONSUMER)
        # the standby claims the first one, and acks it, as soon as it leads
        return (consumer.num_redelivered or 0) >= DEGRADED_MAX_MSGS - 1 and consumer.num_pending == 0

    await eventually(all_given_again)
    taken = await becomes(link, tasks[0], TaskStatus.PROCESSING)
    assert taken.worker == standby.name

    async def one_place_is_free() -> bool:
        return await depth(link) == DEGRADED_MAX_MSGS - 1

    await eventually(one_place_is_free)
    assert [task.status for task in await records(link, tasks[1:])] == [TaskStatus.PENDING] * (DEGRADED_MAX_MSGS - 1)
    assert consumer_on(DEGRADED, WORK_CONSUMER).ack_wait_s == 5.0, "for so long the server waits for a word"


async def records(link: NatsLink, tasks: list[GenerationTask]) -> list[GenerationTask]:
    return await asyncio.gather(*(becomes(link, task, *TaskStatus) for task in tasks))
