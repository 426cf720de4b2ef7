"""The server goes away and comes back while a gateway and a worker's heartbeat live on."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from structlog.testing import capture_logs

from contracts.lanes import LaneHeartbeat, LaneState, SlotState
from contracts.settings import load_settings
from contracts.topology import CONTROL, LANES, bucket_stream, lane_key
from gateway.boards.lane_board import LaneBoard
from lane_worker.runtime.cold_start import ColdStartLog
from lane_worker.runtime.heartbeat import Heartbeat
from lane_worker.runtime.slot_display import SlotDisplay
from ops.ending import end
from ops.nats import leader as leader_module
from ops.nats.errors import TransportUnavailable
from ops.nats.leader import Leader
from ops.nats.link import NatsLink
from ops.telemetry.seldom import Seldom
from tests.integration.outage import server_away
from tests.integration.test_http_generate import GOOD, problem
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess, fresh_system, report_lane
from tests.kit.support import NatsServer, eventually, settings_file


async def test_a_gateway_without_its_server(gateway: GatewayProcess, http: httpx.AsyncClient) -> None:
    """Refusals name an unknown outcome, the gateway still shows known tasks, and the same key gives it later."""
    known = (await http.post("/generate", json=GOOD, headers={"idempotency-key": "before"})).json()
    gateway.nats.kill()
    for headers in ({}, {"idempotency-key": "during"}):
        refused = await http.post("/generate", json=GOOD, headers=headers)
        body = problem(refused)
        assert (refused.status_code, body["code"], body["outcome"]) == (503, "transport_unavailable", "unknown")
        assert int(refused.headers["retry-after"]) >= 1
    assert (await http.get(f"/tasks/{known['id']}")).json() == known
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/readyz")).status_code == 503
    cancelled = await http.delete(f"/tasks/{known['id']}")
    assert (cancelled.status_code, problem(cancelled)["code"]) == (503, "transport_unavailable")
    gateway.nats.start()

    async def accepted() -> httpx.Response | None:
        response = await http.post("/generate", json=GOOD, headers={"idempotency-key": "during"})
        return response if response.status_code == 202 else None

    response = await eventually(accepted)
    assert response is not None
    again = await http.post("/generate", json=GOOD, headers={"idempotency-key": "during"})
    assert again.json()["id"] == response.json()["id"]
    assert (await http.post("/generate", json=GOOD, headers={"idempotency-key": "before"})).json()["id"] == known["id"]
    assert (await http.delete(f"/tasks/{known['id']}")).json()["status"] == "failed"


async def test_everything_outlives_a_server_that_is_away_for_longer_than_every_limit(tmp_path: Path) -> None:
    """Running tasks settle, waiting ones end by the first look, and clients read how old their answers are."""
    # hardly shorter than the server is away: what comes before may take its time on a busy machine
    windows = {"wait_limit_s": 3.5, "degraded_margin_s": 1.5, "lease_s": 3.0, "lease_renew_s": 0.3}
    settings = settings_file(tmp_path, **windows, reconnect_grace_s=1.0)
    async with fresh_system(tmp_path, settings) as system:
        await server_away(system, load_settings(settings).catalog("tiny").windows, away_s=4.0)


LOGGED_AGAIN = ("heartbeat_lost", "slot_not_shown", "cold_start_not_stored", "leader_unknown", "leader_not_refreshed")


async def test_repeated_tries_are_logged_once(
    link: NatsLink, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that write or follow a bucket try several times a second while the server is away, or has lost the
    bucket."""
    tried: Counter[str] = Counter()
    log, is_news = Seldom.log, Seldom.is_news

    def counted_log(self: Seldom, say: Callable[..., Any], event: str, **fields: Any) -> None:
        tried[event] += 1
        log(self, say, event, **fields)

    def counted_is_news(self: Seldom, kind: str) -> bool:
        tried[kind] += kind == "interrupted"
        return is_news(self, kind)

    monkeypatch.setattr(Seldom, "log", counted_log)
    monkeypatch.setattr(Seldom, "is_news", counted_is_news)
    monkeypatch.setattr(leader_module, "LEADER_TTL_S", 60)  # it leads until its first refresh fails, on any machine

    async def tried_again(*kinds: str) -> None:
        async def look() -> bool:
            return all(tried[kind] > 1 for kind in kinds)

        await eventually(look)

    now = datetime.now(UTC)
    watch = await link.watches.start(CONTROL, lambda _: None)
    await watch.wait()
    heartbeat = Heartbeat(
        link, model="anisora", worker="a-0", slot="cpu-0", interval_s=600, health_age_s=lambda: 0.0, started_at=now
    )
    display = SlotDisplay(link, slot="cpu-0", worker="a-0")
    await display.start()
    starts = ColdStartLog(link, model="anisora", worker="a-0", started_at=now)
    leader, standby = (Leader(link, worker=f"d-{n}", owner=f"o{n}", slot="cpu-1") for n in range(2))
    await leader.campaign()
    with capture_logs() as said:
        await js_of(link).delete_stream(bucket_stream(CONTROL))
        await tried_again("interrupted")
        nats_server.kill()
        heartbeat.set(LaneState.WARM)
        display.show(SlotState.EMPTY, None)
        starts.warm()
        running = [heartbeat.run(), display.run(), starts.run(), leader.hold(), standby.campaign()]
        tasks = [asyncio.create_task(each) for each in running]
        await tried_again(*LOGGED_AGAIN)
        for task in tasks:
            await end(task)
    counts = Counter(line["event"] for line in said)
    assert {event: counts[event] for event in (*LOGGED_AGAIN, "watch_interrupted")} == dict.fromkeys(
        (*LOGGED_AGAIN, "watch_interrupted"), 1
    )


async def test_lanes_are_seen_again_after_a_restart(link: NatsLink, nats_server: NatsServer) -> None:
    board = LaneBoard(health_timeout_s=60, grace_s=10)
    await board.start(link)
    await report_lane(link, "anisora", LaneState.LOADING)

    async def states() -> list[LaneState]:
        return board.states("anisora", datetime.now(UTC))[0]

    async def loading() -> bool:
        return await states() == [LaneState.LOADING]

    await eventually(loading)
    nats_server.kill()
    nats_server.start()

    async def reported() -> bool:
        try:
            await report_lane(link, "anisora", LaneState.WARM)
        except TransportUnavailable:
            return False
        return True

    await eventually(reported)

    async def warm() -> bool:
        return await states() == [LaneState.WARM]

    await eventually(warm)


async def test_a_heartbeat_reports_changes_at_once_comes_back_and_leaves(
    link: NatsLink, nats_server: NatsServer
) -> None:
    heartbeat = Heartbeat(
        link,
        model="anisora",
        worker="a-0",
        slot="cpu-0",
        interval_s=600,  # so that only changes and reconnects are reported in this test
        health_age_s=lambda: 1.5,
        started_at=datetime.now(UTC),
    )
    beating = asyncio.create_task(heartbeat.run())
    key = lane_key("anisora", "a-0")

    async def reported(state: LaneState) -> LaneHeartbeat | None:
        try:
            entry = await link.entries.get(LANES, key)
        except TransportUnavailable:
            return None
        value = entry.value if entry is not None else None
        report = None if value is None else msgspec.json.decode(value, type=LaneHeartbeat)
        return report if report is not None and report.state is state else None

    assert await eventually(lambda: reported(LaneState.STARTING))
    heartbeat.set(LaneState.WARM)
    warm = await eventually(lambda: reported(LaneState.WARM))
    assert warm is not None
    assert warm.health_age_s == 1.5
    assert warm.warm_after_s is not None
    before = await link.entries.get(LANES, key)
    assert before is not None
    nats_server.kill()
    nats_server.start()

    async def reconnected() -> bool:
        try:
            entry = await link.entries.get(LANES, key)
        except TransportUnavailable:
            return False
        return entry is not None and entry.revision > before.revision

    await eventually(reconnected)
    await end(beating)
    await heartbeat.leave()
    entry = await link.entries.get(LANES, key)
    assert entry is not None
    assert entry.value is None
