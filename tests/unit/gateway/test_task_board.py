"""A gateway's memory of very many tasks: listing and forgetting cost only what is asked for."""

import asyncio
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts.generation.labels import Label
from contracts.tasks import GenerationTask, TaskStatus
from gateway.boards.readers import MOVED_AT_ONCE
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_board import FORGOTTEN_AT_ONCE, TaskBoard
from gateway.boards.task_index import Place, TaskIndex, TaskRow
from ops.ending import end
from ops.nats.bucket import Versioned
from ops.nats.buckets import RECORDS
from ops.nats.entry import Entry
from tests.kit.records import NOW, pending_task, processing_task

MANY = 3_000


def row(number: int, **changes: Any) -> TaskRow:
    made = TaskRow(
        id=f"task-{number:05}",
        caller="alice",
        model="anisora",
        status=TaskStatus.DONE,
        created_at=NOW + timedelta(seconds=number // 3),
        written_at=NOW + timedelta(seconds=number),
        revision=number + 1,
        paths=(),
    )
    return replace(made, **changes)


def listed(index: TaskIndex, limit: int = MANY, **wanted: Any) -> list[str]:
    return [
        task_id
        for _, task_id in index.newest(
            **{"statuses": None, "models": None, "caller": None, "before": None} | wanted, limit=limit
        )
    ]


def test_newest_first_and_on_from_a_place() -> None:
    index = TaskIndex()
    for number in range(10):
        index.put(row(number, status=list(TaskStatus)[number % 4], model=f"model-{number % 2}"))
    everything = [f"task-{number:05}" for number in reversed(range(10))]
    assert listed(index) == everything
    (*_, fourth) = index.newest(statuses=None, models=None, caller=None, before=None, limit=4)
    assert listed(index, before=fourth) == everything[4:]
    assert listed(index, oldest_first=True) == everything[::-1]
    assert listed(index, before=fourth, oldest_first=True) == everything[:3][::-1]


class _Counted(datetime):
    """A time that counts how often it is compared, which is the cost of a listing."""

    compared = 0

    def __lt__(self, other: datetime, /) -> bool:  # type: ignore[override]  # as in typeshed
        _Counted.compared += 1
        return super().__lt__(other)

    def __eq__(self, other: object) -> bool:
        _Counted.compared += 1
        return super().__eq__(other)

    __hash__ = datetime.__hash__


@pytest.mark.parametrize(
    "wanted",
    [
        {"caller": "bob"},
        {"statuses": {TaskStatus.FAILED}},
        {"models": {"phr00t"}},
        {"labels": frozenset({("a", "b")})},
        {},
    ],
)
def test_a_page_costs_no_more_among_many(wanted: dict[str, Any]) -> None:
    """Before, the board looked at each task of other callers: 0.46 s for a million."""
    index = TaskIndex()
    for number in range(MANY):
        index.put(row(number, created_at=_Counted.fromtimestamp(number, NOW.tzinfo)))
    _Counted.compared = 0
    assert len(listed(index, limit=20, **wanted)) == (0 if wanted else 20)
    assert _Counted.compared < 200


def test_an_id_that_is_recorded_anew_leaves_the_others_alone() -> None:
    """The first record of a keyed id expired or was purged: its earlier place is removed, and no other task's."""
    index = TaskIndex()
    for number in range(5):
        index.put(row(number))
    index.put(row(1, created_at=NOW + timedelta(days=1), revision=99))
    index.pop("task-00001")
    assert listed(index) == ["task-00004", "task-00003", "task-00002", "task-00000"]
    assert len(index) == 4


def test_what_was_written_first_is_forgotten_first() -> None:
    index = TaskIndex()
    for number in range(6):
        index.put(row(number))
    index.put(row(0, written_at=NOW + timedelta(seconds=9), revision=10))
    moment = NOW + timedelta(seconds=4)
    assert index.written_before(moment, limit=9) == ["task-00001", "task-00002", "task-00003"]
    assert index.written_before(moment, limit=2) == ["task-00001", "task-00002"]


A, B = ("project", "spring"), ("shot", "7")

_CHANGES = st.tuples(
    st.integers(0, 5), st.sampled_from(["put", "pop"]), st.sampled_from(["alice", "bob"]), st.sampled_from(TaskStatus),
    st.sampled_from(["anisora", "phr00t"]), st.integers(0, 9), st.sets(st.sampled_from([A, B])),
)  # fmt: skip


@given(st.lists(_CHANGES))
def test_a_listing_is_what_a_look_at_all_rows_would_find(
    changes: list[tuple[int, str, str, TaskStatus, str, int, set[Label]]],
) -> None:
    index, kept = TaskIndex(), dict[str, TaskRow]()
    for number, what, whose, status, of, second, labels in changes:
        made = row(number, caller=whose, status=status, model=of, created_at=NOW + timedelta(seconds=second))
        made = replace(made, labels=tuple(sorted(labels)))
        if what == "put":
            index.put(made)
            kept[made.id] = made
        else:
            assert index.pop(made.id) == kept.pop(made.id, None)
    ended = frozenset({TaskStatus.DONE, TaskStatus.FAILED})
    wanted: list[tuple[str | None, frozenset[TaskStatus] | None, frozenset[str] | None]]
    wanted = [(None, None, None), ("bob", None, frozenset({"phr00t"})), ("alice", ended, None)]
    has_any: list[tuple[frozenset[Label], datetime | None]]
    has_any = [(frozenset(), None), (frozenset({A}), None), (frozenset({A, B}), NOW + timedelta(seconds=4))]
    for (caller, statuses, models), (labels_wanted, since) in product(wanted, has_any):
        found = [
            each
            for each in kept.values()
            if labels_wanted.issubset(each.labels)
            and (since is None or each.created_at >= since)
            and caller in (None, each.caller)
            and (statuses is None or each.status in statuses)
            and (models is None or each.model in models)
        ]
        expected = sorted(((each.created_at, each.id) for each in found), reverse=True)
        assert expected == index.newest(
            statuses=statuses, models=models, caller=caller, before=None, limit=MANY, labels=labels_wanted, since=since
        )


# The board


@pytest.fixture
def board() -> TaskBoard:
    found = TaskBoard()
    for number in range(MANY):
        task = replace(pending_task(), id=f"task-{number:05}", created_at=NOW + timedelta(seconds=number))
        found.record(task, number + 1, NOW + timedelta(seconds=number))
    return found


def everything(board: TaskBoard) -> list[Place]:
    return board.index.newest(statuses=None, models=None, caller=None, before=None, limit=MANY)


async def test_others_run_while_many_tasks_are_forgotten(board: TaskBoard) -> None:
    """Before, 10,000 of a million held up every request for 1.0 s."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    await board.drop_expired(keep_s=60, now=NOW + timedelta(seconds=2_000 + 60))
    running.cancel()
    assert len(everything(board)) == MANY - 2_000
    assert turns >= 2_000 // FORGOTTEN_AT_ONCE


async def test_what_is_written_anew_meanwhile_is_not_forgotten(board: TaskBoard) -> None:
    late = f"task-{FORGOTTEN_AT_ONCE:05}"
    dropping = asyncio.create_task(board.drop_expired(keep_s=60, now=NOW + timedelta(seconds=2_000 + 60)))
    await asyncio.sleep(0)
    board.record(replace(pending_task(), id=late), MANY + 1, NOW + timedelta(days=1))
    await dropping
    assert late in [task_id for _, task_id in everything(board)]


def test_a_record_that_is_deleted_is_forgotten(board: TaskBoard) -> None:
    board.on_entry(Versioned(RECORDS, Entry("task-00000", None, MANY + 1, NOW)))
    assert len(everything(board)) == MANY - 1


# Readers


class _Followed:
    """A reader of `Readers.changes`, and the changes that it received."""

    def __init__(self, board: TaskBoard, task: GenerationTask) -> None:
        self.heard: list[tuple[int, int]] = []
        self._board = board
        self._running = asyncio.create_task(self._read(task))

    async def _read(self, task: GenerationTask) -> None:
        async for change in self._board.readers.changes(Snapshot(task, 1), idle_s=60):
            assert change is not None
            self.heard.append((change.revision, self._board.work_queues.ahead_of(change.task)))

    async def stop(self) -> None:
        await end(self._running)


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_readers_hear_once_of_a_move_and_only_of_their_own_task() -> None:
    board = TaskBoard()
    queue = [pending_task(f"task-{number}", queued_at=NOW + timedelta(seconds=number)) for number in range(4)]
    for task in queue:
        board.record(task, 1, NOW)
    readers = [_Followed(board, task) for task in (*queue[:3], queue[2])]
    waiting = asyncio.create_task(board.readers.wait(Snapshot(queue[2], 1), seen_revision=1, timeout_s=60))
    await _turns()

    async def moves_read() -> list[list[tuple[int, int]]]:
        await board.readers.announce_moves()
        await _turns()
        return [reader.heard for reader in readers]

    as_begun = [[(1, 0)], [(1, 1)], [(1, 2)], [(1, 2)]]
    assert await moves_read() == as_begun
    board.record(pending_task("behind", queued_at=NOW + timedelta(seconds=9)), 1, NOW)
    assert await moves_read() == as_begun
    claimed = processing_task(id="task-1", queued_at=queue[1].queued_at)
    board.record(claimed, 2, NOW)
    assert await moves_read() == [[(1, 0)], [(1, 1), (2, 0)], [(1, 2), (1, 1)], [(1, 2), (1, 1)]]
    assert await moves_read() == [[(1, 0)], [(1, 1), (2, 0)], [(1, 2), (1, 1)], [(1, 2), (1, 1)]]
    # two moves before a notification are one; a move that was undone is none
    board.record(pending_task("between", queued_at=NOW + timedelta(seconds=0.5)), 1, NOW)
    board.on_entry(Versioned(RECORDS, Entry("between", None, 2, NOW)))
    assert (await moves_read())[2] == [(1, 2), (1, 1)]
    board.on_entry(Versioned(RECORDS, Entry("task-0", None, 2, NOW)))
    assert (await moves_read())[2:] == [[(1, 2), (1, 1), (1, 0)], [(1, 2), (1, 1), (1, 0)]]
    assert not waiting.done()  # a reader that waits for another revision is not woken by a move in the queue
    for reader in readers:
        await reader.stop()
    await end(waiting)


async def test_others_run_while_many_readers_are_notified() -> None:
    board = TaskBoard()
    queue = [pending_task(f"task-{number}", queued_at=NOW + timedelta(seconds=number)) for number in range(500)]
    for task in queue:
        board.record(task, 1, NOW)
    readers = [_Followed(board, task) for task in queue]
    await _turns()
    board.on_entry(Versioned(RECORDS, Entry("task-0", None, 2, NOW)))
    announcing, turns = asyncio.create_task(board.readers.announce_moves()), 0
    while not announcing.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 499 // MOVED_AT_ONCE
    await _turns()
    assert [reader.heard[-1] for reader in readers[1:]] == [(1, ahead) for ahead in range(499)]
    for reader in readers:
        await reader.stop()
