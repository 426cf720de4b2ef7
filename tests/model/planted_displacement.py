"""Bugs of displacement, planted in the product's own code."""

import contextlib
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, cast
from unittest.mock import patch

from msgspec.structs import replace

import gateway.placing.displacement
import gateway.placing.sweeper
import gateway.rules.due
import gateway.rules.webhook_events
import gateway.webhooks.delivering
from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask, Priority
from gateway.boards.task_board import TaskBoard
from gateway.placing.displacement import Displacement
from ops.nats.records import Change, Moved


def displaces_the_claimed() -> AbstractContextManager[Any]:
    """A request of a higher class takes the place of any task that has not ended."""

    def careless(task: GenerationTask, arrival: Priority) -> bool:
        return task.priority.rank > arrival.rank and not task.status.is_terminal

    def displace(task: GenerationTask, *, by: GenerationTask, now: datetime) -> GenerationTask:
        return lifecycle.fail(
            replace(task, displaced_by=by.id), code=FailureCode.QUEUE_OVERLOADED, message="displaced", now=now
        )

    stack = contextlib.ExitStack()
    stack.enter_context(patch.object(gateway.placing.displacement, "may_be_displaced", careless))
    stack.enter_context(patch.object(lifecycle, "displace", displace))
    return stack


class _BlindBoard:
    """A task board that moves a task by what is in memory, whatever its record says."""

    def __init__(self, board: TaskBoard) -> None:
        self._board = board

    def __getattr__(self, name: str) -> Any:
        return getattr(self._board, name)

    async def move(self, task_id: str, change: Change, **_: Any) -> Moved | None:
        known = await self._board.get(task_id)
        changed = None if known is None else change(known.task, known.revision)
        if known is None or changed is None:
            return None
        revision = await self._board._records.put(task_id, changed)
        self._board.record(changed, revision, changed.finished_at or changed.queued_at)
        return Moved(changed, revision, known.task)


def displaced_without_compare_and_set() -> AbstractContextManager[Any]:
    """A gateway ends the task that it displaces, whatever the record says by now."""
    make_room = Displacement.make_room

    async def blind(self: Displacement, arrival: GenerationTask) -> GenerationTask | None:
        self._tasks = cast(TaskBoard, _BlindBoard(self._tasks))
        return await make_room(self, arrival)

    return patch.object(Displacement, "make_room", blind)
