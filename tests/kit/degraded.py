"""Real degraded workers on a real nats-server, without a gateway: tests place the tasks themselves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from msgspec.structs import replace

from contracts.lanes import Leadership, VideoPipelineSlot
from contracts.settings import Catalog, load_settings
from contracts.tasks import GenerationTask, TaskStatus, decode_task, encode_task
from contracts.topology import LEADER, LEADER_KEY, TASKS, work_subject
from degraded_worker.worker import DegradedWorker
from lane_worker.runtime.assembly import Setup
from ops.artifacts import Artifacts
from ops.nats.bucket import Bucket
from ops.nats.buckets import SHOWN_SLOTS
from ops.nats.link import NatsLink
from tests.kit.records import pending_task
from tests.kit.support import BOUND_S, eventually
from tests.kit.workers import WorkerProcess


class DegradedProcess(WorkerProcess):
    """`warmlane degraded`. Several may share a slot: one of them leads."""

    def __init__(self, nats_url: str, data_dir: Path, name: str, slot: str, *options: str, **environment: str) -> None:
        super().__init__("degraded", nats_url, data_dir, *options, name=name, slot=slot, **environment)


def setup_of(link: NatsLink, catalog: Catalog, folder: Path, slot: str, *, name: str = "degraded-0") -> Setup:
    """The setup of a worker in this process, which keeps everything in *folder*."""
    artifacts = Artifacts.in_folder(folder / "artifacts")
    return Setup(link, artifacts, catalog, name=name, slot=slot, data_dir=folder)


@asynccontextmanager
async def leading(worker: DegradedWorker, link: NatsLink, name: str = "degraded-0") -> AsyncIterator[None]:
    """Runs *worker* in this process. It leads when the block begins, and stops when the block ends."""
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(stop))
    try:
        await leads(link, name)
        yield
    finally:
        stop.set()
        await asyncio.wait_for(running, BOUND_S)


async def leader_of(link: NatsLink) -> Leadership | None:
    """The current leadership; None where no worker leads."""
    entry = await link.entries.get(LEADER, LEADER_KEY)
    return None if entry is None or entry.value is None else msgspec.json.decode(entry.value, type=Leadership)


async def leads(link: NatsLink, name: str, *, within_s: float = BOUND_S) -> Leadership:
    """The leadership, once *name* holds it."""

    async def look() -> Leadership | None:
        now = await leader_of(link)
        return now if now is not None and now.worker == name else None

    found = await eventually(look, within_s=within_s)
    assert found is not None
    return found


async def shown(link: NatsLink, slot: str) -> VideoPipelineSlot | None:
    """The entry of *slot* in KV `slots`."""
    entry = await Bucket(link, SHOWN_SLOTS).get(slot)
    return None if entry is None else entry.value


def task_of(model: str, number: int, *, traceparent: str | None = None) -> GenerationTask:
    """A small task, as the gateway would place it on the degraded queue now."""
    now = datetime.now(UTC)
    settings = load_settings().catalog("tiny").models[model].constraints
    task = pending_task(f"{number:08d}-0000-7000-8000-{now.microsecond:012d}", model=model, route="degraded")
    parameters = replace(
        task.parameters,
        num_frames=9,
        width=32,
        height=32,
        steps=int(settings.steps.value_when_absent or 1),
        cfg=float(settings.cfg.value_when_absent or 1.0),
    )
    return replace(
        task,
        parameters=parameters,
        created_at=now,
        queued_at=now,
        deadline_at=now + timedelta(seconds=29.5),
        traceparent=traceparent,
    )


async def place(link: NatsLink, task: GenerationTask) -> GenerationTask:
    """Records and queues *task*."""
    await link.entries.create(TASKS, task.id, encode_task(task))
    subject = work_subject(task.route, task.model, task.id)
    await link.messages.publish(subject, encode_task(task), message_id=task.message_id)
    return task


async def becomes(
    link: NatsLink, task: GenerationTask, *statuses: TaskStatus, within_s: float = BOUND_S
) -> GenerationTask:
    """The record of *task*, once it is in one of *statuses*."""

    async def look() -> GenerationTask | None:
        entry = await link.entries.get(TASKS, task.id)
        now = decode_task(entry.value) if entry is not None and entry.value is not None else None
        return now if now is not None and now.status in statuses else None

    found = await eventually(look, within_s=within_s)
    assert found is not None
    return found
