"""Listing what a gateway remembers, while other things go on."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from msgspec.structs import replace

from contracts.tasks import TaskStatus
from gateway.task_board import LOOKED_AT_ONCE, TaskBoard
from ops.nats_link import Entry
from tests.records import NOW, pending_task

COUNT = 2 * LOOKED_AT_ONCE + 500
IDS = [f"task-{number:05}" for number in range(COUNT)]


@pytest.fixture
def board() -> TaskBoard:
    found = TaskBoard()
    for number, task_id in enumerate(IDS):
        task = replace(pending_task(), id=task_id, created_at=NOW + timedelta(seconds=number // 3))
        found.record(task, number + 1, NOW)
    return found


def newest(board: TaskBoard, status: TaskStatus | None = None) -> AsyncIterator[str]:
    return board.newest(status=status, model=None, caller=None, before=None)


async def test_others_run_while_many_tasks_are_looked_at(board: TaskBoard) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    assert [task_id async for task_id in newest(board, TaskStatus.FAILED)] == []
    running.cancel()
    assert turns == COUNT // LOOKED_AT_ONCE + 1


async def test_every_task_once_newest_first(board: TaskBoard) -> None:
    assert [task_id async for task_id in newest(board)] == IDS[::-1]


async def test_tasks_that_come_and_go_meanwhile_move_no_other(board: TaskBoard) -> None:
    found = []
    async for task_id in newest(board):
        found.append(task_id)
        if len(found) == 1:
            board.record(replace(pending_task(), id="new", created_at=NOW + timedelta(days=1)), COUNT + 1, NOW)
        if len(found) == LOOKED_AT_ONCE - 1:
            for gone in (IDS[0], IDS[1_499], IDS[1_500]):
                board.on_entry(Entry(gone, None, COUNT + 2, NOW))
    expected = [task_id for task_id in reversed(IDS) if task_id not in (IDS[0], IDS[1_499], IDS[1_500])]
    assert found == expected
