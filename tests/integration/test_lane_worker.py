"""A lane in this process, with a real pipeline host, on a real server: what it reports of itself and of its slot."""

import os
import re
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from contracts.lanes import LaneHeartbeat, LaneState, SlotState, VideoPipelineSlot
from contracts.settings import Catalog
from contracts.tasks import TaskStatus
from contracts.topology import SLOTS, lane_stream
from gateway.boards.cold_starts import ColdStarts
from lane_worker.worker import SILENT_S, TOO_LARGE_RETRY_S
from ops.lanes.plan import CRASHES
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from ops.nats.pull import FETCH_TIMEOUT_S
from tests.kit.behind import js_of
from tests.kit.degraded import becomes, place, task_of
from tests.kit.degraded import shown as shown_on
from tests.kit.lanes import Lane, SharedForkServer
from tests.kit.support import KEEP_S, children_of, eventually, is_running

pytestmark = pytest.mark.usefixtures("forks", "rogue_forks")

SLOT = "cpu-0"
HEALTH_TIMEOUT_S = 9.0


@pytest.fixture
async def lane(request: pytest.FixtureRequest, link: NatsLink, catalog: Catalog, tmp_path: Path) -> AsyncIterator[Lane]:
    limit_s = getattr(request, "param", HEALTH_TIMEOUT_S)
    windows = replace(catalog.windows, heartbeat_s=0.2, health_timeout_s=limit_s)
    lane = Lane(link, replace(catalog, windows=windows), tmp_path)
    yield lane
    await lane.leave()


async def shown(link: NatsLink) -> VideoPipelineSlot | None:
    return await shown_on(link, SLOT)


async def test_a_warm_lane_shows_what_is_resident_and_nothing_when_it_left(
    link: NatsLink, lane: Lane, catalog: Catalog
) -> None:
    lane.start()
    await lane.becomes(LaneState.WARM)
    slot = await shown(link)
    assert slot is not None
    assert (slot.model, slot.state, slot.worker) == ("phr00t", SlotState.RESIDENT, "phr00t-0")
    await js_of(link).delete_stream(lane_stream("phr00t"))  # no task can come: gateways must not send it any
    heartbeat = await lane.becomes(LaneState.UNHEALTHY)
    assert heartbeat.detail == "LANE_PHR00T/worker is missing; run `warmlane provision`"
    await provision(link, wanted(catalog, keep_s=KEEP_S))
    await lane.becomes(LaneState.WARM)
    await lane.leave()
    assert await shown(link) is None


async def test_a_lane_that_is_to_leave_gives_up_its_load(link: NatsLink, catalog: Catalog, tmp_path: Path) -> None:
    """The lane does so at once: it has no task, and a production model loads for minutes. This one would load for
    ever."""
    model = catalog.models["phr00t"]
    hanging = replace(model, checkpoint=replace(model.checkpoint, folder="hang-in-load"))
    models = {**catalog.models, "phr00t": hanging}
    forks = SharedForkServer()  # this starts the tests' shared fork server, unless an earlier test did
    before = children_of(os.getpid())
    windows = replace(catalog.windows, drain_s=5.0)
    lane = Lane(link, replace(catalog, models=models, windows=windows), tmp_path, fork_server=forks)
    with capture_logs() as logs:
        lane.start()
        await lane.becomes(LaneState.LOADING)
        await lane.leave()
        await lane.ended()
    await forks.close_at_last()
    assert {entry["event"] for entry in logs} & {"drain_too_long", "not_warm"} == set()

    async def nobody_is_left() -> bool:  # processes of other tests may have ended meanwhile
        return set(children_of(os.getpid())) <= set(before)

    await eventually(nobody_is_left)  # the kernel shows a process for a moment after its end was seen


async def test_a_lane_stays_off_a_quarantined_slot_until_it_is_lifted(link: NatsLink, lane: Lane) -> None:
    quarantined = VideoPipelineSlot(
        slot=SLOT,
        worker="another",
        pid=1,
        model=None,
        state=SlotState.QUARANTINED,
        since=datetime.now(UTC),
        detail="still held",
    )
    revision = await link.entries.put(SLOTS, SLOT, msgspec.json.encode(quarantined))
    lane.start()
    heartbeat = await lane.becomes(LaneState.UNHEALTHY)
    assert "quarantined" in heartbeat.detail
    assert await shown(link) == quarantined
    await link.entries.delete(SLOTS, SLOT, revision=revision)
    await lane.becomes(LaneState.WARM)


def without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,.]*", "0", text)


async def test_a_lane_that_can_never_serve_its_model_says_why(link: NatsLink, catalog: Catalog, tmp_path: Path) -> None:
    model = catalog.models["phr00t"]
    large = replace(model, checkpoint=replace(model.checkpoint, activation_bytes=1 << 60))
    lane = Lane(link, replace(catalog, models={**catalog.models, "phr00t": large}), tmp_path)
    lane.start()
    heartbeat = await lane.becomes(LaneState.UNHEALTHY)
    assert heartbeat.detail.startswith(f"phr00t does not fit: with offload none it needs {1 << 60:,} bytes on the host")
    slot = await shown(link)
    assert slot is not None
    # each names the memory that was free at its moment
    assert (slot.state, without_numbers(slot.detail)) == (SlotState.EMPTY, without_numbers(heartbeat.detail))
    await lane.leave()
    assert not (tmp_path / "models").exists(), "it was refused before anything was loaded"


async def test_a_card_that_cannot_serve_the_largest_video_says_so_before_a_client_does(
    link: NatsLink, catalog: Catalog, tmp_path: Path
) -> None:
    """The lane does not keep reloading, because the next try would end in the same way."""
    model = catalog.models["phr00t"]
    small_card = replace(model, warm_up="largest", checkpoint=replace(model.checkpoint, folder="small-card"))
    catalog = replace(catalog, models={**catalog.models, "phr00t": small_card})
    lane = Lane(link, catalog, tmp_path, fork_server=SharedForkServer())
    with capture_logs() as lines:
        lane.start()
        heartbeat = await lane.becomes(LaneState.UNHEALTHY)
    assert "cannot serve the largest video that the settings of phr00t admit: 256 x 256 x " in heartbeat.detail
    advice = 'lower max_volume, or the limits of width, height and num_frames; or set "vae_tiling": true'
    assert advice in heartbeat.detail
    assert [line["again_in_s"] for line in lines if line["event"] == "not_warm"] == [TOO_LARGE_RETRY_S]
    await lane.leave()


def times_of(looping: LaneHeartbeat) -> int:
    """How often a lane that crash-loops could not load. The next try may come before a test has seen this one."""
    return int(looping.detail.removeprefix("it could not load ").partition(" ")[0])


async def test_a_lane_that_cannot_load_crash_loops_until_it_can(
    link: NatsLink, lane: Lane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It behaves like a lane whose process ends again and again. Once it was warm, the count starts again."""
    monkeypatch.setattr("lane_worker.worker.RESTART_FIRST_S", 0.05)
    models = tmp_path / "models"
    models.write_text("no folder")
    before = ["loading", "unhealthy"] * (CRASHES - 1) + ["loading", "crash_looping"]
    with capture_logs() as lines:
        lane.start()
        looping = await lane.becomes(LaneState.CRASH_LOOPING, when=lambda each: times_of(each) >= CRASHES + 2)
        assert "times in a row; the last: " in looping.detail
        assert str(models) in looping.detail
        # 0.05 s, and twice as long after each failure
        assert looping.detail.endswith(f"; tried again after {0.05 * 2 ** (times_of(looping) - 1):g} s")
        models.unlink()
        await lane.becomes(LaneState.WARM)
        models.rename(tmp_path / "away")
        models.write_text("no folder")
        os.kill(lane.host, signal.SIGKILL)
        await lane.becomes(LaneState.CRASH_LOOPING)
        models.unlink()
        await lane.becomes(LaneState.WARM)
    looped = [line["detail"] for line in lines if line["event"] == "lane_state" and line["state"] == "crash_looping"]
    assert [detail.partition(";")[0] for detail in looped] == ["it could not load 3 times in a row"] * 2
    states = [line["state"] for line in lines if line["event"] == "lane_state"]
    assert states == [*before, "warm", *before, "warm"]
    known = ColdStarts()
    await known.start(link)
    (start,) = known.newest_first()  # one process, one start, however many loads it took
    assert start.seconds is not None


async def test_a_host_that_hangs_while_nobody_asks_for_it_is_replaced(link: NatsLink, lane: Lane) -> None:
    """FR-021 b: up to the limit only the health age grows, and the lane claims nothing. Then the lane is unhealthy."""
    with capture_logs() as lines:  # a heartbeat may be overwritten before it is delivered
        lane.start()
        await lane.becomes(LaneState.WARM)
        host = lane.host
        os.kill(host, signal.SIGSTOP)
        # the last fetch from before the silence was noticed has ended
        await lane.becomes(LaneState.WARM, when=lambda each: each.health_age_s > SILENT_S + FETCH_TIMEOUT_S + 1)
        task = await place(link, replace(task_of("phr00t", 1), route="lane"))
        done = await becomes(link, task, TaskStatus.DONE, TaskStatus.FAILED)
        assert (done.status, done.attempt) == (TaskStatus.DONE, 1)
        await lane.becomes(LaneState.WARM)
    assert lane.host != host
    assert not is_running(host)
    states = [(line["state"], line["detail"]) for line in lines if line["event"] == "lane_state"]
    assert [state for state, _ in states][:5] == ["loading", "warm", "unhealthy", "loading", "warm"]
    assert "did not answer" in states[2][1]


@pytest.mark.parametrize("lane", [60.0], indirect=True, ids=["60s"])
async def test_a_host_that_answers_again_in_time_is_left_alone(link: NatsLink, lane: Lane) -> None:
    lane.start()
    await lane.becomes(LaneState.WARM)
    host = lane.host
    os.kill(host, signal.SIGSTOP)
    await lane.becomes(LaneState.WARM, when=lambda each: each.health_age_s > SILENT_S + 1)
    os.kill(host, signal.SIGCONT)
    await lane.becomes(LaneState.WARM, when=lambda each: each.health_age_s < 2)
    done = await becomes(link, await place(link, replace(task_of("phr00t", 1), route="lane")), TaskStatus.DONE)
    assert (done.attempt, lane.host) == (1, host)
