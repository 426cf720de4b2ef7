"""A work loop while nats-server is away, and while its worker leaves."""

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from contracts import lifecycle
from contracts.settings import Windows
from contracts.tasks import (
    FailureCode,
    TaskStatus,
    encode_task,
)
from contracts.topology import TASKS, bucket_stream, work_subject
from lane_worker.runtime.held import HeldTask
from lane_worker.runtime.lease import LeaseKeeper
from lane_worker.runtime.outcome import GaveUp
from lane_worker.runtime.settling import Settlement
from ops.artifacts import Artifacts
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.lanes import CutWire
from tests.kit.looping import (
    STREAM,
    becomes,
    fresh_task,
    queue,
    recorded,
    windows,
    worker,
)
from tests.kit.steered import CONTENT, Worker
from tests.kit.support import NatsServer, as_admin, eventually

__all__ = ["windows", "worker"]  # fixtures


async def test_a_result_outlives_the_server(link: NatsLink, worker: Worker, nats_server: NatsServer) -> None:
    """A worker does not drop a result because NATS is away."""
    task = fresh_task()
    await queue(link, task)
    await worker.runner.started.wait()
    await becomes(link, task.id, TaskStatus.PROCESSING)
    nats_server.kill()
    worker.runner.may_end.set()

    async def stored() -> bool:
        return (worker.artifacts / task.video_path).exists()

    await eventually(stored)
    nats_server.start()

    async def done() -> bool:
        try:
            return (await recorded(link, task.id))[0].status is TaskStatus.DONE
        except TransportUnavailable:
            return False

    await eventually(done)
    assert (worker.artifacts / task.video_path).read_bytes() == CONTENT


async def test_a_worker_leaves_though_its_claim_is_not_stored(link: NatsLink, worker: Worker) -> None:
    """As on a full disk, where the server stores no records. The message stays for the next worker."""
    task = fresh_task()
    await link.entries.create(TASKS, task.id, encode_task(task))
    config = (await js_of(link).stream_info(bucket_stream(TASKS))).config
    await js_of(link).update_stream(config.evolve(max_bytes=1))
    with capture_logs() as lines:
        await link.messages.publish(
            work_subject("lane", task.model, task.id), encode_task(task), message_id=task.message_id
        )

        async def interrupted() -> bool:
            return any(line["event"] == "claim_interrupted" for line in lines)

        await eventually(interrupted)
        await worker.drain()
    assert "claim_given_up" in [line["event"] for line in lines]
    assert not worker.runner.ran
    assert (await recorded(link, task.id))[0].status is TaskStatus.PENDING
    assert (await js_of(link).stream_info(STREAM)).state.messages == 1


async def test_a_worker_that_leaves_waits_for_the_server_only_so_long(
    link: NatsLink, worker: Worker, nats_server: NatsServer
) -> None:
    """The result is then lost, but not the task: its lease ends, and another attempt makes the video."""
    task = fresh_task()
    await queue(link, task)
    await worker.runner.started.wait()
    await becomes(link, task.id, TaskStatus.PROCESSING)
    nats_server.kill()

    assert worker.loop.waits_for_server_s(time.monotonic()) == 0, "it runs: that is waited for"
    worker.runner.may_end.set()
    await worker.drain(unanswered_s=0.5)
    nats_server.start()

    async def still_processing() -> bool:
        try:
            return (await recorded(link, task.id))[0].status is TaskStatus.PROCESSING
        except TransportUnavailable:
            return False

    await eventually(still_processing)


async def test_a_renewal_that_waits_for_the_settling_ends_quietly(
    link: NatsLink, nats_server: NatsServer, windows: Windows
) -> None:
    """A slow server may hold up both. Then nothing is left to renew, and that is no error."""
    claimed = lifecycle.claim(fresh_task(), owner="one", worker="w", lease_s=2, now=datetime.now(UTC))
    revision = await link.entries.create(TASKS, claimed.id, encode_task(claimed))
    wire = CutWire(nats_server.port)
    slow = await NatsLink.connect(as_admin(await wire.start()), name="slow")
    held = HeldTask(slow, claimed, revision)
    keeper = LeaseKeeper(slow, held, windows=windows, on_lost=lambda: pytest.fail("it is not lost"))
    with capture_logs() as logs:
        async with keeper:
            await eventually(lambda: _at_revision(link, claimed.id, revision + 1))  # it renews
            wire.cut()
            settling = asyncio.create_task(
                held.update(
                    lambda task: lifecycle.fail(
                        task, code=FailureCode.INFERENCE_FAILED, message="x", now=datetime.now(UTC)
                    )
                )
            )
            await asyncio.sleep(2 * windows.lease_renew_s)  # a renewal is due, and waits too
            wire.mend()
            assert (await settling).status is TaskStatus.FAILED
            await asyncio.sleep(2 * windows.lease_renew_s)
    assert [entry for entry in logs if entry["log_level"] == "error"] == []
    await slow.close()
    await wire.close()


async def test_nothing_renews_a_lease_that_is_given_back(link: NatsLink, windows: Windows, tmp_path: Path) -> None:
    """Otherwise no gateway would look at the task before the end of a lease that no worker holds."""
    claimed = lifecycle.claim(fresh_task(), owner="one", worker="w", lease_s=2, now=datetime.now(UTC))
    revision = await link.entries.create(TASKS, claimed.id, encode_task(claimed))
    held = HeldTask(link, claimed, revision)
    keeper = LeaseKeeper(link, held, windows=windows, on_lost=lambda: pytest.fail("it is not lost"))
    settlement = Settlement(held, keeper, Artifacts.in_folder(tmp_path / "artifacts"))
    async with keeper:
        await eventually(lambda: _at_revision(link, claimed.id, revision + 1))  # it renews
        await settlement.settle(GaveUp("the host died"))
        await asyncio.sleep(5 * windows.lease_renew_s)  # renewals would be due
    given_back, _ = await recorded(link, claimed.id)
    assert given_back.timeline[-1].event == lifecycle.LEASE_RELEASED
    assert given_back.lease_expires_at == given_back.timeline[-1].at


async def _at_revision(link: NatsLink, task_id: str, revision: int) -> bool:
    return (await recorded(link, task_id))[1] >= revision
