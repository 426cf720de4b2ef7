"""`make windows`: the real 30 s and 60 s of FR-021, with the packaged settings. Outside `make test`: it has to wait."""

import asyncio
from datetime import UTC, datetime, timedelta

import structlog
from msgspec import structs

from contracts.lanes import LaneState
from contracts.settings import Catalog
from contracts.tasks import GenerationTask, TaskStatus, decode_task
from contracts.topology import LANES, TASKS
from ops.nats.entry import Entry
from tests.integration.outage import server_away
from tests.kit.gateway import System, report_lane
from tests.kit.support import eventually

HEALTH_TIMEOUT = timedelta(seconds=60)
WAIT_LIMIT = timedelta(seconds=30)
LATE = timedelta(seconds=0.5)  # a gateway looks up to 0.1 s late, because of its spread, and then acts


async def test_a_lane_counts_for_60_s_after_it_was_heard_of(bare_system: System) -> None:
    """FR-021 (b), to the moment: the test asks repeatedly, and each answer is right for the time of its request."""
    await report_lane(bare_system.link, "phr00t", LaneState.WARM)
    entry = await bare_system.link.entries.get(LANES, "phr00t.phr00t-0")
    assert entry is not None
    while True:
        asked_at = datetime.now(UTC)
        models = (await bare_system.http.get("/admin/lanes")).json()["models"]
        answered_at = datetime.now(UTC)
        (outcome,) = [model["route"]["outcome"] for model in models if model["model"] == "phr00t"]
        if outcome != "lane":
            assert answered_at - entry.time >= HEALTH_TIMEOUT
            return
        assert asked_at - entry.time <= HEALTH_TIMEOUT
        await asyncio.sleep(0.02)


async def test_a_task_waits_30_s_for_its_lane_and_29_5_s_for_the_degraded_worker(bare_system: System) -> None:
    """FR-021 (c) and FR-017, by the server's own timestamps."""
    states: list[tuple[datetime, GenerationTask]] = []

    def on_record(entry: Entry) -> None:
        if entry.value is not None:
            states.append((entry.time, decode_task(entry.value)))

    await (await bare_system.link.watches.start(TASKS, on_record)).wait()
    states.clear()
    await report_lane(bare_system.link, "anisora", LaneState.WARM)
    task_id = (await bare_system.submit())["id"]

    async def ended() -> bool:
        return any(task.status.is_terminal for _, task in states)

    await eventually(ended, within_s=90)
    (queued_at, queued), (rerouted_at, rerouted), (ended_at, failed) = states
    assert {queued.id, rerouted.id, failed.id} == {task_id}
    assert (queued.route, rerouted.route, rerouted.epoch) == ("lane", "degraded", 1)
    assert WAIT_LIMIT - LATE <= rerouted_at - queued_at <= WAIT_LIMIT + LATE
    assert failed.status is TaskStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == "queue_overloaded"
    assert ended_at - rerouted_at <= WAIT_LIMIT


async def test_the_server_is_away_for_60_s(bare_system: System, catalog: Catalog) -> None:
    """That is longer than a lease and every wait limit. The log says how long the recovery took."""
    returned = await server_away(bare_system, catalog.windows, away_s=60)
    structlog.get_logger("windows").info("server_back", **structs.asdict(returned))
