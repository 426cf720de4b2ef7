"""A deleted consumer, on a real server with the users of `nats.conf`: the process that needs it makes it again."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from msgspec.structs import replace

from contracts.settings import Catalog, load_settings
from contracts.tasks import TaskStatus, decode_task, encode_task
from contracts.topology import (
    DEADLINES,
    DEGRADED,
    TASKS,
    TIMER_KINDS,
    WORK_CONSUMER,
    lane_stream,
    sweep_consumer,
    work_subject,
)
from ops.nats.access import NatsAccess
from ops.nats.link import NatsLink
from ops.nats.provisioning import differences, provision, wanted
from tests.kit.behind import js_of
from tests.kit.gateway import fresh_system
from tests.kit.records import pending_task
from tests.kit.steered import Worker
from tests.kit.support import KEEP_S, NatsServer, eventually, settings_file


async def test_a_gateway_makes_its_sweepers_consumers_anew(tmp_path: Path) -> None:
    """Without them an accepted task stayed `pending` for ever. If even the stream is gone, `/readyz` says what to
    do."""
    settings = settings_file(tmp_path, wait_limit_s=2.0, degraded_margin_s=0.5)
    async with fresh_system(tmp_path, settings) as system:
        for kind in TIMER_KINDS:
            await js_of(system.link).delete_consumer(DEADLINES, sweep_consumer(kind))
        task = await system.submit()
        await system.becomes(task["id"], TaskStatus.FAILED, epoch=0)
        assert system.gateway.log().count("consumer_made_anew") == len(TIMER_KINDS)
        want = wanted(catalog_of(settings), keep_s=KEEP_S)
        assert await differences(system.link, want) == []
        await js_of(system.link).delete_stream(DEADLINES)

        async def troubles() -> list[str]:
            found: list[str] = (await system.http.get("/readyz")).json()["troubles"]
            return found

        async def all_told() -> bool:
            return len(await troubles()) == len(TIMER_KINDS)

        await eventually(all_told)
        assert "DEADLINES/sweep-admit is missing; run `warmlane provision`" in await troubles()
        await provision(system.link, want)

        async def well() -> bool:
            return await troubles() == []

        await eventually(well)


def catalog_of(settings: Path) -> Catalog:
    return load_settings(settings).catalog("tiny")


@pytest.mark.parametrize("route", ["lane", "degraded"])
async def test_a_worker_makes_its_queues_consumer_anew(
    route: Literal["lane", "degraded"], link: NatsLink, nats_server: NatsServer, catalog: Catalog, tmp_path: Path
) -> None:
    """Also one that is deleted while a fetch waits. The worker's own user has the right to make it."""
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
    await js_of(link).delete_stream(stream)  # which is not the worker's to make

    async def is_told() -> bool:
        return worker.loop.trouble == f"{stream}/worker is missing; run `warmlane provision`"

    await eventually(is_told)
    await provision(link, wanted(catalog, keep_s=KEEP_S))

    async def is_well() -> bool:
        return worker.loop.trouble is None

    await eventually(is_well)
    await worker.close()
    await own.close()
