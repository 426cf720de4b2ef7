"""Forged tasks on the queue of a whole system: nothing is run that the gateway would not have accepted."""

import asyncio
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from contracts.tasks import encode_task
from contracts.topology import work_subject
from ops.nats_link import NatsLink
from tests.records import pending_task
from tests.system import UpProcess


def test_a_forged_task_ends_as_invalid_input_and_the_next_one_runs(system: UpProcess) -> None:
    now = datetime.now(UTC)
    task = pending_task(
        "01890a5d-ac96-774b-bcce-b302099a8f00",
        created_at=now,
        queued_at=now,
        deadline_at=now + timedelta(seconds=30),
    )
    forged = replace(task, parameters=replace(task.parameters, num_frames=1_000_000_001, width=1 << 20))

    async def publish() -> None:
        link = await NatsLink.connect(system.nats_url, name="test")
        await link.publish(work_subject("lane", "anisora", task.id), b"\0\xff")
        await link.publish(work_subject("lane", "anisora", task.id), encode_task(forged))
        await link.close()

    asyncio.run(publish())
    good = system.ended(system.submit()["id"])
    ended = system.ended(task.id)
    assert (good["status"], good["attempt"]) == ("done", 1)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "invalid_input")
    assert "num_frames" in ended["error"]["message"]
