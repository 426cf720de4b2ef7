"""A deleted consumer, on a real server with the users of `nats.conf`: the process that needs it recreates it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from msgspec.structs import replace

from contracts.settings import Catalog
from contracts.tasks import TaskStatus, decode_task, encode_task
from contracts.topology import (
    DEGRADED,
    TASKS,
    WORK_CONSUMER,
    lane_stream,
    work_subject,
)
from ops.nats.access import NatsAccess
from ops.nats.link import NatsLink
from ops.nats.provisioning import differences, provision, wanted
from tests.kit.behind import js_of
from tests.kit.records import pending_task
from tests.kit.steered import Worker
from tests.kit.support import KEEP_S, NatsServer, eventually


@pytest.mark.parametrize("route", ["lane", "degraded"])
async def test_a_worker_makes_its_queues_consumer_anew(
    route: Literal["lane", "degraded"], link: NatsLink, nats_server: NatsServer, catalog: Catalog, tmp_path: Path
) -> None:
    """This works even if the consumer is deleted while a fetch waits. The worker's own user has the right to it."""
    stream = lane_stream("anisora") if route == "lane" else DEGRADED
    own = await NatsLink.connect(
        NatsAccess(urls=nats_server.address, user=route, password=f"pw-{route}"), name="worker"
    )
    worker = Worker(own, catalog.windows, tmp_path, "one", stream=stream)
    worker.runner.may_end.set()
    for number in range(2):
        now = datetime.now(UTC)
        task = pending_task(f"task-{number}", created_at=now, queued_at=now, deadline_at=now + timedelta(seconds=60))
        task = replace(task, route=route)
        await js_of(link).delete_consumer(stream, WORK_CONSUMER)
        await link.entries.create(TASKS, task.id, encode_task(task))
        await link.messages.publish(work_subject(route, task.model, task.id), encode_task(task))

        async def done(task_id: str = task.id) -> bool:
            entry = await link.entries.get(TASKS, task_id)
            return decode_task((entry and entry.value) or b"").status is TaskStatus.DONE

        await eventually(done)
    assert await differences(link, wanted(catalog, keep_s=KEEP_S)) == []
    await js_of(link).delete_stream(stream)  # the worker must not make the stream

    async def is_reported() -> bool:
        return worker.loop.trouble == f"{stream}/worker is missing; run `warmlane provision`"

    await eventually(is_reported)
    await provision(link, wanted(catalog, keep_s=KEEP_S))

    async def is_well() -> bool:
        return worker.loop.trouble is None

    await eventually(is_well)
    await worker.close()
    await own.close()
