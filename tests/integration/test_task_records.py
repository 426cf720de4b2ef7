"""`TaskRecords.move` on a real nats-server: if another process is faster, its write is not lost."""

import contextlib
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from contracts.tasks import GenerationTask, encode_task
from contracts.topology import TASKS
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink
from ops.nats.records import TaskAtRevision, TaskRecords
from tests.kit.records import pending_task


def promised(task: GenerationTask, _: int) -> GenerationTask | None:
    return None if task.promised else replace(task, promised=True)


async def test_a_move_that_lost_a_race_reads_the_record_again(link: NatsLink) -> None:
    records, task = TaskRecords(link), replace(pending_task(), promised=False)
    first = await records.create(task.id, task)
    second = await records.update(task.id, replace(task, attempt=1), revision=first)  # our caller has not seen it
    refused: list[int] = []

    @contextlib.contextmanager
    def around(before: GenerationTask) -> Iterator[None]:
        try:
            yield
        except WrongRevision:
            refused.append(before.attempt)
            raise

    moved = await records.move(task.id, promised, known=TaskAtRevision(task, first), around=around)
    assert moved is not None
    assert (moved.task.promised, moved.task.attempt, refused) == (True, 1, [0])
    assert moved.before is not None
    assert (moved.before.attempt, moved.before.promised) == (1, False)
    stored = await records.get(task.id)
    assert stored is not None
    assert (stored.value, stored.revision) == (moved.task, moved.revision)
    assert moved.revision > second


async def test_a_record_that_is_to_stay_is_not_written(link: NatsLink) -> None:
    records, task = TaskRecords(link), pending_task()
    revision = await records.create(task.id, task)
    moved = await records.move(task.id, promised)
    assert moved is not None
    assert (moved.task, moved.revision, moved.before) == (task, revision, None)


@pytest.mark.parametrize("stored", [None, b"\xff", encode_task(replace(pending_task(), id="another"))])
async def test_a_missing_or_unreadable_record_is_not_moved(link: NatsLink, stored: bytes | None) -> None:
    if stored is not None:
        await link.entries.create(TASKS, "mine", stored)
    assert await TaskRecords(link).move("mine", promised) is None
    entry = await link.entries.get(TASKS, "mine")
    assert (None if entry is None else entry.value) == stored
