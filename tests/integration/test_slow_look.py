"""The slow look finds on the server what a watch of the records did not bring, and does not read what it brought."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import AsyncMock, patch

import pytest

from contracts.settings import Catalog
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, encode_task
from contracts.topology import TASKS
from gateway.boards.task_board import TaskBoard
from gateway.placing import slow_look
from gateway.placing.slow_look import SlowLook
from gateway.services import Services
from ops.nats.bucket import Versioned
from ops.nats.link import NatsLink
from ops.nats.records import TaskRecords
from tests.kit.measured import Measured
from tests.kit.records import after, pending_task, processing_task
from tests.kit.support import KEEP_S, NatsServer, eventually

SKIPPED = "skipped"


@pytest.fixture
def skipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Task boards hear nothing of one task."""
    on_entry = TaskBoard.on_entry

    def skip(self: TaskBoard, entry: Versioned[GenerationTask]) -> None:
        if entry.key != SKIPPED:
            on_entry(self, entry)

    monkeypatch.setattr(TaskBoard, "on_entry", skip)
    monkeypatch.setattr(slow_look, "ARRIVED_S", 0.1)
    monkeypatch.setattr(slow_look, "EVERY_S", 0.2)


@contextlib.asynccontextmanager
async def watching(link: NatsLink) -> AsyncIterator[tuple[TaskBoard, SlowLook]]:
    """A board that has read the bucket, and a slow look that has compared nothing yet."""
    tasks = TaskBoard()
    look = SlowLook(link=link, tasks=tasks)
    await tasks.start(link)
    yield tasks, look


@pytest.mark.usefixtures("skipping")
async def test_what_the_watch_did_not_bring_is_read_once_and_counted(link: NatsLink, measured: Measured) -> None:
    before = measured.value("warmlane.records.missed")
    async with watching(link) as (tasks, look):
        for task_id in ("brought", SKIPPED):
            await link.entries.create(TASKS, task_id, encode_task(pending_task(task_id)))
        await eventually(lambda: asyncio.sleep(0, tasks.index.get("brought") is not None))
        assert await look.look() == 1
        assert await look.look() == 0
        assert tasks.deadlines.due(after(60), limit=9) == ["brought", SKIPPED]
    assert measured.value("warmlane.records.missed") == before + 1


@pytest.mark.usefixtures("skipping")
async def test_what_the_first_read_did_not_bring_is_found_as_well(link: NatsLink, measured: Measured) -> None:
    """Found by `make model`, in story 2018: the gateway had just restarted. A deleted record costs no read."""
    before = measured.value("warmlane.records.missed")
    for task_id in ("brought", "deleted", SKIPPED):
        revision = await link.entries.create(TASKS, task_id, encode_task(pending_task(task_id)))
    revision = await link.entries.put(TASKS, "deleted", encode_task(pending_task("deleted")))
    await link.entries.delete(TASKS, "deleted", revision=revision)
    async with watching(link) as (tasks, look):
        read = AsyncMock(side_effect=tasks.read)
        with patch.object(tasks, "read", read):
            assert await look.look() == 1
        assert tasks.index.get(SKIPPED) is not None
    assert [each.args for each in read.await_args_list] == [(SKIPPED,)]
    assert measured.value("warmlane.records.missed") == before + 1


@pytest.mark.usefixtures("skipping")
async def test_what_is_gone_or_cannot_be_read_was_not_missed(link: NatsLink, measured: Measured) -> None:
    before = measured.value("warmlane.records.missed")
    async with watching(link) as (_, look):
        revision = await link.entries.put(TASKS, SKIPPED, encode_task(pending_task(SKIPPED)))
        await link.entries.delete(TASKS, SKIPPED, revision=revision)
        assert await look.look() == 0
        await link.entries.put(TASKS, SKIPPED, b"\0\xff")
        await link.entries.put(TASKS, "poison", b"\0\xff")
        assert await look.look() == 0
    assert measured.value("warmlane.records.missed") == before


async def test_a_busy_gateway_compares_some_at_a_time_and_goes_on_from_there(
    link: NatsLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    is_known = TaskBoard().index.is_known.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(slow_look, "AT_ONCE", 2)
    async with watching(link) as (tasks, look):
        for number in range(5):
            await link.entries.create(TASKS, f"t{number}", encode_task(pending_task(f"t{number}")))

        async def all_brought() -> bool:
            return len(tasks.index) == 5

        await eventually(all_brought)

        def note(key: str, revision: int) -> bool:
            compared.append(key)
            return bool(is_known(tasks.index, key, revision))

        monkeypatch.setattr(tasks.index, "is_known", note)
        counts = []
        for _ in range(4):
            await look.look()
            counts.append(len(compared))
    assert (counts, compared) == ([2, 4, 5, 5], [f"t{number}" for number in range(5)])


async def test_while_the_watch_lags_nothing_is_compared(
    link: NatsLink, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that lags misses nothing: it reports how far it is behind, and brings the rest."""
    before = measured.value("warmlane.records.missed")
    async with watching(link) as (tasks, look):
        monkeypatch.setattr(tasks, "news_age_s", lambda: 3.0)
        await link.entries.create(TASKS, "late", encode_task(pending_task("late")))
        assert await look.look() == 0
        monkeypatch.undo()

        async def is_brought() -> bool:
            return tasks.index.get("late") is not None

        await eventually(is_brought)
        assert await look.look() == 0
    assert measured.value("warmlane.records.missed") == before


@pytest.mark.usefixtures("skipping")
async def test_a_task_of_which_no_gateway_heard_ends(
    nats_server: NatsServer, link: NatsLink, catalog: Catalog, tmp_path: Path
) -> None:
    """A worker made the record and died: without the slow look the task would be `processing` for ever."""
    services = Services(catalog=catalog, nats=nats_server.url, artifacts_dir=tmp_path / "artifacts", keep_s=KEEP_S)
    async with services.running():
        now = datetime.now(UTC)
        lost = processing_task(now=now, lease_s=0.1, id=SKIPPED, attempt=catalog.attempts)
        await link.entries.create(TASKS, SKIPPED, encode_task(lost))
        records = TaskRecords(link)

        async def ended() -> GenerationTask | None:
            known = await records.read(SKIPPED)
            return known.task if known is not None and known.task.status.is_terminal else None

        task = await eventually(ended)
    assert task is not None
    assert task.error is not None
    assert (task.status, task.error.code) == (TaskStatus.FAILED, FailureCode.WORKER_LOST)
    assert task.finished_at is not None
    assert task.finished_at - now >= timedelta(seconds=0.1)
