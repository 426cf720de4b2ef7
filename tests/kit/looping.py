"""A work loop in the process of the test: its tasks, and their records."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.settings import Catalog, Windows
from contracts.tasks import (
    GenerationTask,
    TaskStatus,
    decode_task,
    encode_task,
)
from contracts.topology import TASKS, lane_stream, work_subject
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.records import pending_task
from tests.kit.steered import Worker
from tests.kit.support import eventually

STREAM = lane_stream("anisora")
PROCESS = f"process {STREAM}"
OTHER_ID = "01890a5d-ac96-774b-bcce-b302099a8058"


@pytest.fixture
def windows(catalog: Catalog) -> Windows:
    return replace(catalog.windows, lease_s=2.0, lease_renew_s=0.2)


@pytest.fixture
async def worker(link: NatsLink, windows: Windows, tmp_path: Path) -> AsyncIterator[Worker]:
    worker = Worker(link, windows, tmp_path, "one")
    yield worker
    await worker.close()


def fresh_task() -> GenerationTask:
    now = datetime.now(UTC)
    return pending_task(created_at=now, queued_at=now, deadline_at=now + timedelta(seconds=30))


async def queue(link: NatsLink, task: GenerationTask, *, record: bool = True, message_id: str | None = None) -> None:
    if record:
        await link.entries.create(TASKS, task.id, encode_task(task))
    subject = work_subject("lane", "anisora", task.id)
    await link.messages.publish(subject, encode_task(task), message_id=message_id or task.message_id)


async def recorded(link: NatsLink, task_id: str) -> tuple[GenerationTask, int]:
    entry = await link.entries.get(TASKS, task_id)
    assert entry is not None
    assert entry.value is not None
    return decode_task(entry.value), entry.revision


async def becomes(link: NatsLink, task_id: str, status: TaskStatus) -> GenerationTask:
    async def look() -> GenerationTask | None:
        entry = await link.entries.get(TASKS, task_id)
        task = decode_task(entry.value) if entry is not None and entry.value is not None else None
        return task if task is not None and task.status is status else None

    task = await eventually(look)
    assert task is not None
    return task


async def queue_is_empty(link: NatsLink) -> None:
    async def look() -> bool:
        return (await js_of(link).stream_info(STREAM)).state.messages == 0

    await eventually(look)
