"""nats-server is killed and started again while requests flow: the gateway's watches, and with them routing, go on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from contracts.lanes import LaneState
from contracts.settings import load_settings
from contracts.topology import CONTROL, DEGRADED, control_key
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess, System, report_lane
from tests.kit.support import KEEP_S, eventually, settings_file

HEALTH_S, GRACE_S = 3.0, 4.0


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    """A gateway that gives lanes up after a short silence, and waits a little longer after it was itself cut off."""
    gateway = GatewayProcess(tmp_path)
    gateway.nats.start()
    settings = settings_file(tmp_path, health_timeout_s=HEALTH_S, heartbeat_s=1.0, reconnect_grace_s=GRACE_S)
    link = await NatsLink.connect(gateway.nats.url, name="test")
    await provision(link, wanted(load_settings(settings).catalog("tiny"), keep_s=KEEP_S))
    await asyncio.to_thread(gateway.start, "--settings", str(settings), "--keep", f"{KEEP_S:g}s")
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
        yield System(gateway, link, http)
    await link.close()
    gateway.stop()
    gateway.nats.stop()


async def put_when_it_answers(system: System, value: bytes) -> None:
    async def written() -> bool:
        try:
            await system.link.entries.put(CONTROL, control_key("anisora"), value)
        except TransportUnavailable:
            return False
        return True

    await eventually(written)


async def test_switches_and_lanes_are_seen_again_while_requests_flow(system: System) -> None:
    await system.lane_is(LaneState.WARM)
    routes: list[str] = []

    async def load() -> None:
        while True:
            response = await system.post(prefer="respond-async")
            routes.append(response.json()["route"] if response.status_code == 202 else str(response.status_code))
            await asyncio.sleep(0.01)  # makes a steady load, and waits for nothing

    flowing = [asyncio.create_task(load()) for _ in range(3)]
    try:
        system.gateway.nats.kill()
        await asyncio.to_thread(system.gateway.nats.start)
        await put_when_it_answers(system, b"degraded")

        async def switched() -> bool:
            return bool((await system.http.get("/admin/lanes/anisora/mode")).json()["mode"] == "degraded")

        await eventually(switched)
        await js_of(system.link).purge_stream(DEGRADED)
        seen = len(routes)

        async def routed() -> bool:
            return "degraded" in routes[seen:]

        await eventually(routed)
        await put_when_it_answers(system, b"auto")

        async def back() -> bool:
            await report_lane(system.link, "anisora", LaneState.WARM)  # a report counts for HEALTH_S only
            return routes[-1] == "lane"

        await eventually(back)
    finally:
        for each in flowing:
            each.cancel()
        await asyncio.gather(*flowing, return_exceptions=True)
    assert set(routes) <= {"lane", "degraded", "503"}


async def test_lanes_are_not_lost_because_the_gateway_was_cut_off(system: System) -> None:
    await system.lane_is(LaneState.WARM)
    system.gateway.nats.kill()

    async def cut_for_longer_than_lanes_may_be_silent() -> bool:
        lanes = (await system.http.get("/admin/lanes")).json()
        age_s = lanes["models"][0]["lanes"][0]["health_age_s"]
        return bool(lanes["judged_at"] < lanes["now"] and age_s > HEALTH_S)

    await eventually(cut_for_longer_than_lanes_may_be_silent)
    await asyncio.to_thread(system.gateway.nats.start)

    async def task() -> dict[str, str] | None:
        response = await system.post(prefer="respond-async")
        return response.json() if response.status_code == 202 else None

    first = await eventually(task)
    assert first is not None
    assert first["route"] == "lane"
    answer = (await system.http.get(f"/admin/tasks/{first['id']}/explain")).json()
    assert (answer["fired"]["rule"], answer["agrees"]) == (2, True)
    assert answer["decision"]["judged_at"] is not None

    # the lane reports nothing more: when the grace period is over, it is lost
    async def lost() -> bool:
        lanes = (await system.http.get("/admin/lanes")).json()
        return bool(lanes["judged_at"] == lanes["now"] and lanes["models"][0]["route"]["rule"] == 4)

    await eventually(lost)
