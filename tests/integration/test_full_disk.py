"""A disk that is really full, and JetStream's own limit, under a real nats-server and a real gateway."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from contracts import lifecycle
from contracts.lanes import LaneState
from contracts.settings import load_settings
from contracts.tasks import encode_task
from contracts.topology import TASKS
from ops.ending import end
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from ops.nats.server import nats_conf
from ops.nats.store_keeper import StoreKeeper
from tests.integration.test_http_generate import problem
from tests.kit.gateway import GatewayProcess, System, report_lane
from tests.kit.small_disk import small_disk
from tests.kit.support import BOUND_S, KEEP_S, NatsServer, eventually


@contextlib.asynccontextmanager
async def running(gateway: GatewayProcess, *options: str) -> AsyncIterator[System]:
    async with contextlib.AsyncExitStack() as leave:
        leave.callback(gateway.nats.stop)
        gateway.nats.start()
        link = await NatsLink.connect(gateway.nats.url, name="test")
        leave.push_async_callback(link.close)
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        leave.callback(gateway.stop)
        await asyncio.to_thread(gateway.start, "--keep", f"{KEEP_S:g}s", *options)
        http = await leave.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=BOUND_S))
        yield System(gateway, link, http)


def with_limit(folder: Path, limit: str) -> GatewayProcess:
    """A gateway, and a server that may store up to *limit*."""
    gateway = GatewayProcess(folder)
    conf = folder / "nats.conf"
    conf.write_text(nats_conf().read_text().replace("20GB", limit))
    gateway.nats = NatsServer(folder / "nats", "-c", str(conf))
    return gateway


async def troubles(system: System) -> list[str]:
    found: list[str] = (await system.http.get("/readyz")).json()["troubles"]
    return found


async def test_a_server_whose_disk_was_full_is_restarted_and_goes_on(tmp_path: Path) -> None:
    """nats-server 2.15.1 refuses every later write to a stream until it is restarted, even when there is room again."""
    gateway = GatewayProcess(tmp_path)
    said: list[str] = []

    async def restart() -> None:
        await asyncio.to_thread(gateway.nats.stop)
        await asyncio.to_thread(gateway.nats.start)

    with small_disk(tmp_path / "nats", mib=48) as disk:
        async with running(gateway, "--nats-storage", "100MB") as system:
            await system.lane_is(LaneState.WARM)
            disk.fill()
            own = await NatsLink.connect(gateway.nats.url, name="up")
            keeping = asyncio.create_task(StoreKeeper(own, disk.folder, restart, said.append).run())

            async def post() -> httpx.Response:
                await report_lane_if_it_can(system)
                return await system.post(prefer="respond-async")

            async def is_reported() -> bool:
                await post()
                return any("takes no writes: make room" in each for each in await troubles(system))

            await eventually(is_reported)
            # `transport_unavailable` until the gateway has seen the disk
            await eventually(lambda: is_refused(post()))
            ready = (await system.http.get("/readyz")).json()
            assert (ready["nats"], ready["ready"]) == (True, False)

            async def is_said(text: str) -> bool:
                await post()
                return any(text in each for each in said)

            await eventually(lambda: is_said("make room"))
            disk.empty()
            await eventually(lambda: is_said("restarting it"))  # even with room again, the server still refuses

            async def accepted() -> bool:
                return (await post()).status_code == 202

            await eventually(accepted)
            await end(keeping)
            await own.close()

            async def well() -> bool:
                return await troubles(system) == []

            await eventually(well)


async def is_refused(answering: Coroutine[Any, Any, httpx.Response]) -> bool:
    answer = await answering
    assert answer.status_code == 503
    return bool(problem(answer)["code"] == "storage_full")


async def report_lane_if_it_can(system: System) -> None:
    with contextlib.suppress(TransportUnavailable):
        await report_lane(system.link, "anisora", LaneState.WARM)


async def test_requests_are_refused_before_the_limit_is_reached_and_tasks_end(tmp_path: Path) -> None:
    """JetStream's limit is for all streams together: without reserved room, no accepted task could end."""
    async with running(with_limit(tmp_path, "4MB"), "--nats-storage", "4MB") as system:
        await system.lane_is(LaneState.WARM)
        task = await system.submit()
        for number in range(38):
            await system.link.entries.put(TASKS, f"ballast-{number}", b"x" * 100_000)

        async def seen() -> bool:
            return any("new requests are refused" in each for each in await troubles(system))

        await eventually(seen)
        refused = await system.post()
        assert (refused.status_code, problem(refused)["code"]) == (503, "storage_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await system.http.get("/readyz")).json()["ready"] is False
        claimed = await system.claim(task["id"])
        _, revision = await system.record(task["id"])
        released = lifecycle.release_lease(claimed, reason="by hand", now=datetime.now(UTC))
        await system.link.entries.update(TASKS, task["id"], encode_task(released), revision=revision)
        assert (await system.http.delete(f"/tasks/{task['id']}")).json()["status"] == "failed"
        metrics = (await system.http.get("/metrics")).text
        assert "warmlane_storage_room_bytes" in metrics
        assert 'warmlane_stream_refusing{stream="KV_tasks"' in metrics
        for number in range(38):
            await system.link.messages.purge("KV_tasks", f"$KV.tasks.ballast-{number}")

        async def accepted() -> bool:
            await report_lane(system.link, "anisora", LaneState.WARM)
            return (await system.post(prefer="respond-async")).status_code == 202

        await eventually(accepted)
        assert await troubles(system) == []


async def test_the_limit_itself_is_reported(tmp_path: Path) -> None:
    """If a gateway does not know the right limit, the server's refusals show it."""
    async with running(with_limit(tmp_path, "1MB")) as system:
        await system.lane_is(LaneState.WARM)
        with contextlib.suppress(TransportUnavailable):
            for number in range(30):
                await system.link.entries.put(TASKS, f"ballast-{number}", b"x" * 100_000)

        async def is_reported() -> bool:
            answer = await system.post(prefer="respond-async")
            assert (answer.status_code, problem(answer)["code"]) == (503, "transport_unavailable")
            return any("max_file_store is reached" in each for each in await troubles(system))

        await eventually(is_reported)


async def test_a_full_disk_of_the_log_fails_no_request(tmp_path: Path) -> None:
    """Only log lines are lost. Log and metrics report how many once there is room."""
    with small_disk(tmp_path / "logs", mib=1) as disk:
        gateway = GatewayProcess(tmp_path)
        gateway.log_file = disk.folder / "gateway.log"
        async with running(gateway) as system:
            disk.fill()
            for number in range(15):  # each logs a line of more than 300 bytes: one is cut at the end of a page
                refused = await system.http.get(f"/tasks/{number:0>100}")
                assert (refused.status_code, problem(refused)["code"]) == (404, "task_not_found")
            await system.lane_is(LaneState.WARM)
            assert (await system.post(prefer="respond-async")).status_code == 202
            disk.empty()
            await system.http.get("/nowhere")
            metrics = (await system.http.get("/metrics")).text
        lines = [json.loads(line) for line in gateway.log_file.read_text().splitlines()]
    (lost,) = (line for line in lines if line["event"] == "log_lines_lost")
    assert lost["reasons"] == {"ENOSPC": lost["lines"]}
    assert lines[lines.index(lost) + 1]["path"] == "/nowhere"
    (counted,) = (line for line in metrics.splitlines() if "lines_lost_total{" in line and "ENOSPC" in line)
    assert float(counted.rsplit(" ", 1)[1]) == lost["lines"]
