"""What a supervisor does for a dead lane: it writes its entry in KV `cold_starts`, and gives its task back."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from contracts import lifecycle
from contracts.lanes import ColdStart, InHand
from contracts.progress import StepsDone
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, decode_task, encode_task
from contracts.topology import COLD_STARTS, TASKS, bucket_stream
from gateway.boards.cold_starts import ColdStarts
from ops.lanes.recovery import LostStarts, give_back, is_same_start
from ops.nats.entry import Entry
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.records import DECISION, NOW, TASK_ID, after, processing_task
from tests.kit.support import eventually

HOW = "signal 9, SIGKILL"


def start(began_s: float = 0, ended_s: float = 5, *, worker: str = "anisora-0", detail: str = HOW) -> ColdStart:
    return ColdStart(
        model="anisora",
        worker=worker,
        started_at=after(began_s),
        ended_at=after(ended_s),
        seconds=None,
        detail=detail,
    )


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        pytest.param(start(0.01, 4.9), True, id="what-the-lane-wrote-itself"),
        pytest.param(start(0, 0), True, id="it-ended-as-it-began"),
        pytest.param(start(-9, -0.5), False, id="the-process-before"),
        pytest.param(start(-9, 0), False, id="the-process-before-which-ended-as-this-one-began"),
        pytest.param(start(5.5, 9), False, id="the-process-after"),
        pytest.param(start(0.01, 4.9, worker="anisora-1"), False, id="another-lane"),
    ],
)
def test_two_entries_of_one_process(other: ColdStart, expected: bool) -> None:
    assert is_same_start(start(), other) is expected
    assert is_same_start(other, start()) is expected


async def stored(link: NatsLink) -> list[str]:
    """The details of the entries in the bucket, the oldest first."""
    known = ColdStarts()
    await known.start(link)
    return [start.detail for start in known.newest_first()][::-1]


async def is_stored(link: NatsLink, detail: str) -> bool:
    return detail in await stored(link)


async def all_reported(starts: LostStarts) -> None:
    await eventually(starts.store)


async def test_a_lost_start_is_stored_unless_the_lane_stored_it_itself(link: NatsLink) -> None:
    await link.entries.put(COLD_STARTS, "anisora", msgspec.json.encode(start(0.01, 4.9, detail="its own")))
    await link.entries.put(
        COLD_STARTS, "anisora", msgspec.json.encode(start(0, 5, worker="anisora-1", detail="beside"))
    )
    starts = LostStarts(link)
    await starts.start()
    for number in range(3):
        starts.lost(start(10 * number, 10 * number + 5, detail=f"life {number}"))
    await all_reported(starts)
    # in the order in which they ended; the lane itself reported the first of them
    assert await stored(link) == ["its own", "beside", "life 1", "life 2"]


async def test_an_entry_that_the_watch_brings_during_the_read_is_not_forgotten(
    link: NatsLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It once was forgotten: an older revision replaced the one that the watch had brought, and `store` failed for
    ever."""
    starts = LostStarts(link)
    await starts.start()
    update, get = link.entries.update, link.entries.get

    async def overtaken(bucket: str, key: str, value: bytes, **options: Any) -> int:
        monkeypatch.setattr(link.entries, "update", update)
        await link.entries.put(COLD_STARTS, "anisora", msgspec.json.encode(start(-9, -1, detail="before")))
        return await update(bucket, key, value, **options)

    async def slow(bucket: str, key: str) -> Entry | None:
        last = await get(bucket, key)
        # a later watch has brought it, so the watch of `starts` has too
        await eventually(lambda: is_stored(link, "before"))
        return last

    monkeypatch.setattr(link.entries, "update", overtaken)
    monkeypatch.setattr(link.entries, "get", slow)
    starts.lost(start(detail="lost"))
    await all_reported(starts)
    assert await stored(link) == ["before", "lost"]


async def test_an_entry_of_the_lane_that_comes_in_between_wins(link: NatsLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry was on its way when the process died: compare-and-set refuses the later write."""
    starts = LostStarts(link)
    await starts.start()
    update = link.entries.update

    async def overtaken(bucket: str, key: str, value: bytes, **options: Any) -> int:
        monkeypatch.undo()
        await link.entries.put(COLD_STARTS, "anisora", msgspec.json.encode(start(0.01, 4.9, detail="its own")))
        return await update(bucket, key, value, **options)

    monkeypatch.setattr(link.entries, "update", overtaken)
    starts.lost(start())
    await all_reported(starts)
    assert await stored(link) == ["its own"]


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_write_without_an_answer_is_not_made_twice(
    link: NatsLink, monkeypatch: pytest.MonkeyPatch, is_stored: bool
) -> None:
    starts = LostStarts(link)
    await starts.start()
    update = link.entries.update

    async def without_an_answer(*arguments: Any, **options: Any) -> int:
        if is_stored:
            await update(*arguments, **options)
        raise TransportUnavailable("no answer")

    monkeypatch.setattr(link.entries, "update", without_an_answer)
    starts.lost(start())
    with pytest.raises(TransportUnavailable):
        await starts.store()
    monkeypatch.undo()
    await all_reported(starts)
    assert await stored(link) == [HOW]


async def test_an_operator_may_empty_the_bucket(link: NatsLink) -> None:
    await link.entries.put(COLD_STARTS, "anisora", msgspec.json.encode(start(-20, -10)))
    starts = LostStarts(link)
    await starts.start()
    await js_of(link).purge_stream(bucket_stream(COLD_STARTS))
    starts.lost(start(detail="afterwards"))
    await all_reported(starts)
    assert await stored(link) == ["afterwards"]


async def record(link: NatsLink) -> tuple[GenerationTask, int]:
    entry = await link.entries.get(TASKS, TASK_ID)
    assert entry is not None
    assert entry.value is not None
    return decode_task(entry.value), entry.revision


async def place(link: NatsLink, task: GenerationTask) -> int:
    return await link.entries.create(TASKS, TASK_ID, encode_task(task))


async def test_a_task_whose_owner_was_reaped_is_given_back(link: NatsLink) -> None:
    await place(link, processing_task(now=datetime.now(UTC)))
    await give_back(link, InHand(task_id=TASK_ID, owner="owner-1"), how=HOW)
    task, revision = await record(link)
    assert task.lease_expires_at is not None
    assert task.lease_expires_at <= datetime.now(UTC)
    assert (task.status, task.epoch, task.attempt, task.owner) == (TaskStatus.PROCESSING, 0, 1, "owner-1")
    assert (task.timeline[-1].event, task.timeline[-1].detail) == (
        "worker_lost",
        f"the process of anisora-0 ended: {HOW}",
    )
    await give_back(link, InHand(task_id=TASK_ID, owner="owner-1"), how=HOW)  # a retry, as after a lost answer
    assert (await record(link))[1] == revision


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(processing_task("another", now=NOW), id="another-process-holds-it"),
        pytest.param(
            lifecycle.fail(processing_task(now=NOW), code=FailureCode.CANCELLED, message="cancelled", now=after(1)),
            id="it-has-ended",
        ),
        pytest.param(
            lifecycle.requeue(processing_task(now=NOW), route="lane", decision=DECISION, wait_s=30, now=after(20)),
            id="it-was-requeued",
        ),
    ],
)
async def test_a_task_that_is_not_in_the_dead_hands_is_left_alone(link: NatsLink, task: GenerationTask) -> None:
    revision = await place(link, task)
    await give_back(link, InHand(task_id=TASK_ID, owner="owner-1"), how=HOW)
    assert await record(link) == (task, revision)
    await give_back(link, InHand(task_id="never-recorded", owner="owner-1"), how=HOW)


@pytest.mark.parametrize("takes_over", [False, True])
async def test_a_write_in_between_is_taken_into_account(
    link: NatsLink, monkeypatch: pytest.MonkeyPatch, takes_over: bool
) -> None:
    """The last renewal of the dead owner does not keep the task; the claim of another owner does."""
    now = datetime.now(UTC)
    task = processing_task(now=now)
    revision = await place(link, task)
    update = link.entries.update
    claimed = processing_task("another", now=now, epoch=1)
    renewed = lifecycle.renew(task, progress=StepsDone(step=1, steps=8), lease_s=60, now=now)
    between = claimed if takes_over else renewed

    async def overtaken(*arguments: Any, **options: Any) -> int:
        monkeypatch.undo()
        await update(TASKS, TASK_ID, encode_task(between), revision=revision)
        return await update(*arguments, **options)

    monkeypatch.setattr(link.entries, "update", overtaken)
    await give_back(link, InHand(task_id=TASK_ID, owner="owner-1"), how=HOW)
    found, _ = await record(link)
    assert found.lease_expires_at is not None
    is_over = found.lease_expires_at <= datetime.now(UTC) + timedelta(seconds=1)
    assert (found.owner, is_over) == (("another", False) if takes_over else ("owner-1", True))
