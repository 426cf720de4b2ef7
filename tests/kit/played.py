"""A worker that is played by hand, on the records of a real gateway."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from contracts import lifecycle
from contracts.memory import MemoryReading
from contracts.tasks import GenerationTask, decode_task, encode_task
from contracts.topology import TASKS
from ops.nats.link import NatsLink
from tests.kit.gateway import GatewayProcess
from tests.kit.records import pending_task, video_of

UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"
CONTENT = bytes(range(256)) * 40


async def submitted(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/generate", json={"model": "anisora", "prompt": "x"} | fields)
    assert response.status_code == 202
    task: dict[str, Any] = response.json()
    return task


async def record(link: NatsLink, task_id: str) -> tuple[GenerationTask, int]:
    entry = await link.entries.get(TASKS, task_id)
    assert entry is not None
    assert entry.value is not None
    return decode_task(entry.value), entry.revision


async def claimed(link: NatsLink, task_id: str) -> GenerationTask:
    """Claims the task by hand, as a worker does."""
    task, revision = await record(link, task_id)
    task = lifecycle.claim(task, owner="hand", worker="anisora-0", lease_s=600, now=datetime.now(UTC))
    await link.entries.update(TASKS, task_id, encode_task(task), revision=revision)
    return task


async def finished(link: NatsLink, gateway: GatewayProcess, task_id: str, *, claim: bool = True) -> GenerationTask:
    """Claims and finishes the task, with CONTENT as its video."""
    if claim:
        await claimed(link, task_id)
    task, revision = await record(link, task_id)
    path = gateway.artifacts / task.video_path
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CONTENT)
    done = lifecycle.finish(
        task, video=video_of(task, CONTENT), memory=MemoryReading(rss_bytes=1), now=datetime.now(UTC)
    )
    await link.entries.update(TASKS, task_id, encode_task(done), revision=revision)
    return done


def degraded_task(queued_at: datetime, **changes: Any) -> GenerationTask:
    """A task on the degraded queue. It has no message: no worker is there that could take it."""
    return pending_task(
        str(uuid.uuid4()),
        route="degraded",
        created_at=queued_at,
        queued_at=queued_at,
        deadline_at=queued_at + timedelta(seconds=29.5),
        **changes,
    )
