"""Gateways that are killed while others go on with their tasks: no trace is without its root (ADR 0036).

Here a gateway exports only the spans that it sends ahead: the rest waits for ten minutes.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest
from nats.aio.msg import Msg

from contracts.lanes import LaneState
from contracts.tasks import TaskStatus, decode_task
from ops.telemetry.tracing import TRACEPARENT
from tests.kit.behind import client_of, until_subscribed
from tests.kit.collector import Collector, SeenSpan
from tests.kit.degraded import DegradedProcess
from tests.kit.gateway import GatewayProcess, System, fresh_system
from tests.kit.support import BOUND_S, eventually, eventually_sync, settings_file, shared_forks
from tests.kit.warm_cli import COLLECTOR_S

CALLER: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def exporting(collector: Collector) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces",
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
        COLLECTOR_S: f"{BOUND_S:g}",
    }


@pytest.fixture
async def system(tmp_path: Path, exporting: dict[str, str]) -> AsyncIterator[System]:
    async with fresh_system(tmp_path, settings_file(tmp_path), **exporting) as system:
        yield system


def root_of(collector: Collector, task_id: str) -> SeenSpan:
    """The one root of a task's trace: every other span of the trace has its parent in it."""
    (trace_id,) = {span.trace_id for span in collector.spans if span.attributes.get("task.id") == task_id}
    spans = {span.span_id: span for span in collector.trace(trace_id)}
    (root,) = [span for span in spans.values() if span.parent_id not in spans]
    return root


async def killed_with(system: System, epoch: int) -> asyncio.Future[Msg]:
    """Kills the gateway as soon as the server has the message of *epoch* of a task, before the gateway learns that."""
    seen: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

    async def look(message: Msg) -> None:
        if not seen.done() and message.data and decode_task(message.data).epoch == epoch:
            os.kill(system.gateway.pid, signal.SIGKILL)
            seen.set_result(message)

    for route in ("lane", "degraded"):
        await client_of(system.link).subscribe(f"{route}.anisora.*", cb=look)
    await until_subscribed(system.link)
    return seen


async def test_killed_while_it_holds_a_request(system: System, collector: Collector, exporting: dict[str, str]) -> None:
    """A worker that starts afterwards finishes the task: its spans have their root, and no span lacks its parent."""
    forks = shared_forks()  # torch is imported now, and not while the task waits
    held = asyncio.create_task(system.post())
    task_id = await system.only_task()
    await eventually(lambda: asyncio.sleep(0, "caller_held" in system.gateway.log()))
    system.gateway.kill()
    with pytest.raises(httpx.HTTPError):
        await held
    worker = DegradedProcess(
        system.gateway.nats.address, system.gateway.folder, "degraded-0", "cpu-0", **exporting, **forks
    )
    try:
        await system.becomes(task_id, TaskStatus.DONE, epoch=0, within_s=60)
        assert worker.stop() == 0
    finally:
        worker.kill()
    root = root_of(collector, task_id)
    assert (root.name, root.service, root.parent_id) == ("accept", "warmlane-gateway", "")
    below = {span.name: span for span in collector.trace(root.trace_id) if span.parent_id == root.span_id}
    assert set(below) == {"queue.wait", "process DEGRADED"}
    assert root.begun_at <= below["queue.wait"].begun_at <= root.ended_at


async def test_killed_while_it_holds_a_request_that_nobody_takes(
    collector: Collector, exporting: dict[str, str], tmp_path: Path
) -> None:
    """Another gateway ends the task."""
    settings = settings_file(tmp_path, wait_limit_s=3.0)
    (tmp_path / "other").mkdir()
    async with fresh_system(tmp_path, settings, **exporting) as system:
        held = asyncio.create_task(system.post(traceparent=CALLER))
        task_id = await system.only_task()
        other = GatewayProcess(tmp_path / "other", beside=system.gateway)
        system.gateway.kill()
        with pytest.raises(httpx.HTTPError):
            await held
        await asyncio.to_thread(lambda: other.start("--settings", str(settings), **exporting))
        try:
            await system.becomes(task_id, TaskStatus.FAILED, epoch=0)
        finally:
            other.stop()
    root = root_of(collector, task_id)
    assert (root.name, root.trace_id, root.parent_id) == ("accept", *CALLER.split("-")[1:3]), "below its caller's"
    assert [span.name for span in collector.trace(root.trace_id)] == ["accept", "expire"]


async def test_killed_before_it_learns_that_a_task_is_queued(system: System, collector: Collector) -> None:
    """So this also holds for a kill at any later time, before or after its answer: the worker that takes the task puts
    its spans below one that was already sent."""
    await system.lane_is(LaneState.WARM)
    killed = await killed_with(system, epoch=0)
    with contextlib.suppress(httpx.HTTPError):  # on a busy machine the gateway may answer first
        await system.post()
    message = await killed
    system.gateway.kill()  # what it had sent has arrived
    assert [(root.name, parent_of(message)) for root in collector.spans] == [("accept", collector.spans[0].span_id)]


async def test_killed_before_it_learns_that_a_lost_task_is_queued_again(system: System, collector: Collector) -> None:
    """The sweeper's message leads to spans below the root as well, and not below a span of the killed gateway."""
    task = await system.submit()
    killed = await killed_with(system, epoch=1)
    await system.claim(task["id"], lease_s=0.1)
    message = await asyncio.wait_for(killed, timeout=60)
    system.gateway.kill()
    (root,) = [span for span in collector.spans if span.name == "accept"]
    assert parent_of(message) == root.span_id


async def batch(system: System) -> httpx.Response:
    requests = [{"model": "anisora", "prompt": prompt} for prompt in ("a red fox", "a blue fox")]
    return await system.http.post("/generate/batch", json={"requests": requests})


async def resubmitted(system: System) -> httpx.Response:
    ended = await system.submit()
    await system.http.delete(f"/tasks/{ended['id']}")
    return await system.http.post(f"/tasks/{ended['id']}/resubmit", json={})


async def with_a_slash(system: System) -> httpx.Response:
    return await system.http.post("/generate/", json={"model": "anisora", "prompt": "a red fox"})


async def as_openai_does(system: System) -> httpx.Response:
    return await system.http.post("/v1/videos", json={"model": "anisora", "prompt": "a red fox"})


@pytest.mark.parametrize("submitted", [batch, resubmitted, with_a_slash, as_openai_does])
async def test_every_way_to_submit_has_a_root(
    system: System, collector: Collector, submitted: Callable[[System], Awaitable[httpx.Response]]
) -> None:
    """The workers go on below what is sent before the first task of the request is queued."""
    await system.lane_is(LaneState.WARM)
    answer = await submitted(system)
    assert answer.is_success, answer.text
    made = answer.json().get("tasks", [answer.json()])
    sent = {(await system.record(task["id"]))[0].traceparent for task in made}
    system.gateway.kill()
    roots = {span.span_id: span for span in collector.spans if span.name == "accept"}
    assert [traceparent and traceparent.split("-")[2] in roots for traceparent in sent] == [True]


async def test_a_refused_request_has_one_trace_too(system: System, collector: Collector) -> None:
    """Its root ends with the request, and is exported with the rest."""
    await system.http.post("/generate", json={"model": "anisora"}, headers={"traceparent": CALLER})
    await asyncio.to_thread(system.gateway.stop)
    eventually_sync(lambda: len(collector.spans) == 2)
    root, request = collector.trace(CALLER.split("-")[1])
    assert (root.name, request.name, request.kind, request.parent_id) == (
        *("accept", "POST /generate", "server"),
        root.span_id,
    )


def parent_of(message: Msg) -> str:
    return (message.headers or {})[TRACEPARENT].split("-")[2]
