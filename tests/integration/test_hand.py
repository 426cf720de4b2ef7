"""The hand of a leader on a real server: what it takes, keeps, drops and gives back, without claiming any of it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace
from nats.aio.msg import Msg

from contracts import lifecycle
from contracts.order import Policy
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, decode_task, encode_task
from contracts.topology import DEGRADED, DEGRADED_MAX_MSGS, TASKS, WORK_CONSUMER, work_subject
from degraded_worker.hand import Hand
from lane_worker.runtime.order import Order
from ops.nats.errors import StreamFull
from ops.nats.link import NatsLink
from tests.kit.behind import client_of, js_of
from tests.kit.degraded import place, task_of
from tests.kit.support import BOUND_S, NatsServer, eventually

MODELS = ("anisora", "phr00t")


class Leader:
    """A hand, and whether its worker leads."""

    def __init__(self, link: NatsLink, *, order: Policy = Policy(order="fifo")) -> None:  # noqa: B008 - it is frozen
        self.leads = True
        self.resident: str | None = None
        self.hand = Hand(
            link, order=Order(order, resident=lambda: self.resident), owner="leader", leads=lambda: self.leads
        )

    async def takes(self) -> GenerationTask:
        """The next task."""
        found = await eventually(self.hand.next)  # it may take the server a moment to give what another hand gave back
        assert found is not None
        await found.message.ack()
        return decode_task(found.message.data)


@pytest.fixture
async def leader(link: NatsLink) -> AsyncIterator[Leader]:
    leader = Leader(link)
    yield leader
    await leader.hand.close()


async def in_hands(link: NatsLink, count: int) -> None:
    """Returns when the consumer has *count* delivered messages without an ack."""

    async def are() -> bool:
        given_out = (await js_of(link).consumer_info(DEGRADED, WORK_CONSUMER)).num_ack_pending
        return bool(given_out == count)

    await eventually(are)


async def depth_becomes(link: NatsLink, count: int) -> None:
    """Returns when the queue has *count* messages. The server removes a message a while after it noted its ack."""

    async def is_it() -> bool:
        return bool((await js_of(link).stream_info(DEGRADED)).state.messages == count)

    await eventually(is_it)


async def test_what_waits_keeps_its_place_and_is_not_claimed(link: NatsLink, leader: Leader) -> None:
    tasks = [await place(link, task_of("anisora", number)) for number in range(DEGRADED_MAX_MSGS)]
    first = await leader.takes()
    await in_hands(link, DEGRADED_MAX_MSGS - 1)
    assert first == tasks[0]
    for task in tasks[1:]:
        entry = await link.entries.get(TASKS, task.id)
        assert entry is not None
        assert entry.value == encode_task(task)
    await depth_becomes(link, DEGRADED_MAX_MSGS - 1)
    await place(link, task_of("phr00t", 90))
    with pytest.raises(StreamFull):
        await place(link, task_of("phr00t", 91))


async def test_all_that_waits_is_chosen_from(link: NatsLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """This includes messages from long before: the worker has just begun to lead."""
    monkeypatch.setattr("degraded_worker.hand.GATHER_S", BOUND_S)  # a busy server may pause between two messages
    for number in range(6):
        await place(link, task_of(MODELS[number % 2], number))
    leader = Leader(link, order=Policy())
    leader.resident = "phr00t"
    try:
        found = await eventually(leader.hand.next)
        assert found is not None
        assert found.order is not None
        assert {(group.model, group.count) for group in found.order.waiting} == {("anisora", 3), ("phr00t", 3)}
    finally:
        await leader.hand.close()


async def test_it_is_kept_alive(link: NatsLink, leader: Leader) -> None:
    """The worker reports each message as in progress again and again, so the server does not redeliver it."""
    tasks = [await place(link, task_of("anisora", number)) for number in range(4)]
    heard: Counter[str] = Counter()

    async def hear(message: Msg) -> None:
        if message.data == b"+WPI":
            heard[message.subject.split(".")[5]] += 1  # the sequence in the stream

    await client_of(link).subscribe(f"$JS.ACK.{DEGRADED}.{WORK_CONSUMER}.>", cb=hear)
    assert await leader.takes() == tasks[0]

    async def often() -> bool:
        return sorted(heard.values())[-3:] >= [5, 5, 5]

    await eventually(often)
    assert (await js_of(link).consumer_info(DEGRADED, WORK_CONSUMER)).num_redelivered == 0
    assert [await leader.takes() for _ in range(3)] == tasks[1:]


async def test_what_ended_or_was_taken_elsewhere_is_dropped(link: NatsLink, leader: Leader) -> None:
    tasks = [await place(link, task_of("anisora", number)) for number in range(4)]
    assert await leader.takes() == tasks[0]
    await in_hands(link, 3)
    now = datetime.now(UTC)
    ended = lifecycle.fail(tasks[1], code=FailureCode.CANCELLED, message="cancelled", now=now)
    claimed = lifecycle.claim(tasks[2], owner="somebody", worker="else", lease_s=20, now=now)
    for task in (ended, claimed):
        entry = await link.entries.get(TASKS, task.id)
        assert entry is not None
        await link.entries.update(TASKS, task.id, encode_task(task), revision=entry.revision)
    await in_hands(link, 1)
    await depth_becomes(link, 1)
    assert await leader.takes() == tasks[3]


async def test_what_the_server_has_dropped_by_age_is_let_go(link: NatsLink, leader: Leader) -> None:
    """Such a task's deadline is over, and no worker claims it: it costs no look and no swap."""
    overdue = task_of("anisora", 1)
    overdue = await place(link, replace(overdue, deadline_at=overdue.queued_at))
    task = await place(link, task_of("phr00t", 2))
    assert await leader.takes() == task
    entry = await link.entries.get(TASKS, overdue.id)
    assert entry is not None
    assert entry.value is not None
    assert decode_task(entry.value).status is TaskStatus.PENDING


async def test_a_leader_that_goes_gives_all_back_at_once(link: NatsLink, leader: Leader) -> None:
    tasks = [await place(link, task_of("anisora", number)) for number in range(5)]
    assert await leader.takes() == tasks[0]
    await in_hands(link, 4)
    said: Counter[bytes] = Counter()

    async def hear(message: Msg) -> None:
        said[message.data] += 1

    await client_of(link).subscribe(f"$JS.ACK.{DEGRADED}.{WORK_CONSUMER}.>", cb=hear)
    await leader.hand.close()
    following = Leader(link)
    try:
        assert [await following.takes() for _ in range(4)] == tasks[1:]
        await eventually(lambda: asyncio.sleep(0, said[b"-NAK"] >= 4))
        assert said[b"-NAK"] == 4
    finally:
        await following.hand.close()


async def test_a_leader_that_dies_gives_all_back(link: NatsLink, nats_server: NatsServer) -> None:
    tasks = [await place(link, task_of("anisora", number)) for number in range(5)]
    own = await NatsLink.connect(nats_server.url, name="dies")
    dead = Leader(own)
    assert await dead.takes() == tasks[0]
    await in_hands(link, 4)
    await own.close()  # and gives nothing back
    following = Leader(link)
    try:
        taken = []

        async def all_come() -> bool:
            found = await following.hand.next()
            if found is not None:
                assert found.message.metadata.num_delivered > 1
                taken.append(decode_task(found.message.data))
                await found.message.ack()
            return len(taken) == 4

        await eventually(all_come)
        assert sorted(task.id for task in taken) == sorted(task.id for task in tasks[1:])
    finally:
        await following.hand.close()
        await dead.hand.close()


async def test_who_leads_no_more_hands_out_nothing_and_gives_all_back(link: NatsLink, leader: Leader) -> None:
    tasks = [await place(link, task_of("anisora", number)) for number in range(3)]
    assert await leader.takes() == tasks[0]
    await in_hands(link, 2)
    leader.leads = False
    assert await leader.hand.next() is None
    following = Leader(link)
    try:
        assert [await following.takes() for _ in range(2)] == tasks[1:]
    finally:
        await following.hand.close()


async def test_what_cannot_be_read_is_handed_on(link: NatsLink, leader: Leader) -> None:
    await link.messages.publish(work_subject("degraded", "anisora", "x"), b"no task")
    found = await eventually(leader.hand.next)
    assert found is not None
    assert (found.message.data, found.order) == (b"no task", None)


async def test_a_message_that_comes_while_nothing_waits_is_handed_out(link: NatsLink, leader: Leader) -> None:
    assert await leader.hand.next() is None
    coming = asyncio.create_task(leader.takes())
    task = await place(link, task_of("anisora", 1))
    assert await coming == task
