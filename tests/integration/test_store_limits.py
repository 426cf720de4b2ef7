"""A bucket that accepts nothing more, on a real server: the gateway reports exactly that, and drops nothing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from contracts.settings import Catalog
from contracts.tasks import TaskStatus, decode_task, encode_task
from contracts.topology import TASKS, bucket_stream, lane_stream, work_subject
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.provisioning import differences, provision, wanted
from tests.integration.test_http_generate import GOOD, problem
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess
from tests.kit.records import pending_task
from tests.kit.steered import Worker
from tests.kit.support import KEEP_S, eventually


async def limit(link: NatsLink, stream: str, **limits: int) -> None:
    """Sets limits as an operator does who wants to bound a stream."""
    config = (await js_of(link).stream_info(stream)).config
    await js_of(link).update_stream(config.evolve(**limits))


async def test_a_full_bucket_is_no_error_of_the_gateway(
    http: httpx.AsyncClient, gateway: GatewayProcess, gateway_link: NatsLink, catalog: Catalog
) -> None:
    """`POST` and `DELETE` report an unknown outcome, the same key finds it out, and provisioning names the limit."""
    known = (await http.post("/generate", json=GOOD)).json()
    await limit(gateway_link, bucket_stream(TASKS), max_bytes=1)
    refused = await http.post("/generate", json=GOOD, headers={"idempotency-key": "full"})
    body = problem(refused)
    assert (refused.status_code, body["code"], body["outcome"]) == (503, "transport_unavailable", "unknown")
    cancelled = await http.delete(f"/tasks/{known['id']}")
    assert (cancelled.status_code, problem(cancelled)["code"]) == (503, "transport_unavailable")
    want = wanted(catalog, keep_s=KEEP_S)
    assert [str(each) for each in await differences(gateway_link, want)] == [
        "KV_tasks: max_bytes is 1, should be -1",
    ]
    await provision(gateway_link, want)
    again = await http.post("/generate", json=GOOD, headers={"idempotency-key": "full"})
    assert (again.status_code, again.json()["status"]) == (202, "pending")
    assert (await http.delete(f"/tasks/{known['id']}")).json()["status"] == "failed"
    assert "unexpected_error" not in gateway.log()


async def test_limits_of_records_are_reported(link: NatsLink, catalog: Catalog) -> None:
    """A limit on the number of messages removes records silently; a limit on bytes or on message size refuses them."""
    await limit(link, bucket_stream(TASKS), max_bytes=100_000, max_msgs=100, max_msg_size=1)
    task = pending_task()
    with pytest.raises(TransportUnavailable):
        await link.entries.create(TASKS, task.id, encode_task(task))
    found = {f"{each.name}: {each.field}" for each in await differences(link, wanted(catalog, keep_s=KEEP_S))}
    assert found == {f"KV_tasks: {field}" for field in ("max_bytes", "max_msgs", "max_msg_size")}


async def test_a_finished_result_waits_for_a_bucket_that_takes_it(
    link: NatsLink, catalog: Catalog, tmp_path: Path
) -> None:
    worker = Worker(link, catalog.windows, tmp_path, "one")
    now = datetime.now(UTC)
    task = pending_task(created_at=now, queued_at=now, deadline_at=now + timedelta(seconds=30))
    await link.entries.create(TASKS, task.id, encode_task(task))
    await link.messages.publish(work_subject("lane", task.model, task.id), encode_task(task))
    await worker.runner.started.wait()
    await limit(link, bucket_stream(TASKS), max_bytes=1)
    with capture_logs() as lines:
        worker.runner.may_end.set()

        async def tried() -> bool:
            return any(line["event"] == "record_not_stored" for line in lines)

        await eventually(tried)
    await provision(link, wanted(catalog, keep_s=KEEP_S))

    async def done() -> bool:
        entry = await link.entries.get(TASKS, task.id)
        return decode_task((entry and entry.value) or b"").status is TaskStatus.DONE

    await eventually(done)
    assert (await link.streams.depth(lane_stream("anisora"))).messages == 0
    await worker.close()
