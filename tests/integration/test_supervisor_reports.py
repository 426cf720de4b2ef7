"""What a supervisor reports of lanes that a test moves by hand: a dead lane's last report, denials, failed starts."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from contracts.lanes import ColdStart, InHand, LaneHeartbeat, LaneState, LeavingFor
from contracts.settings import Catalog
from contracts.tasks import GenerationTask, decode_task, encode_task
from contracts.topology import COLD_STARTS, LANES, TASKS
from ops.lanes.plan import Death, Want
from ops.lanes.providers import GrantedLane, LaneDenied
from ops.lanes.quota import Quota
from ops.lanes.supervisor import Supervised, Supervisor
from ops.machine.processes import Process
from ops.nats.link import NatsLink
from tests.kit.records import TASK_ID, lane_report, processing_task
from tests.kit.reported_lanes import Lanes, starts_of
from tests.kit.support import eventually


class HandLane:
    """A lane whose process the test plays."""

    slot = "by-hand"

    def __init__(self, on_death: Callable[[Death], None]) -> None:
        self.pid: int | None = None
        self.began_at = datetime.now(UTC)
        self.leaving_for: LeavingFor | None = None
        self.drained = asyncio.Event()
        self.drained.set()
        self._on_death = on_death

    def dies(self, how: str = "signal 9, SIGKILL") -> None:
        pid, self.pid = self.pid, None
        self._on_death(Death(how, pid or 0, self.began_at, again_at_s=0.0))
        self.began_at = datetime.now(UTC)

    async def stop(self, *, within_s: float, leaving_for: LeavingFor | None = None) -> None:
        self.leaving_for = leaving_for
        await self.drained.wait()
        self.pid = None

    def kill(self) -> None:
        self.drained.set()


class HandProvider:
    """Grants every lane but those that it *denies*."""

    def __init__(self) -> None:
        self.lanes: dict[str, HandLane] = {}
        self.denies: dict[str, LaneDenied] = {}
        self.drains = False
        self.asked = 0

    async def start(self, want: Want, on_death: Callable[[Death], None]) -> GrantedLane:
        self.asked += 1
        if want.name in self.denies:
            raise self.denies[want.name]
        self.lanes[want.name] = HandLane(on_death)
        return self.lanes[want.name]


@asynccontextmanager
async def by_hand(
    link: NatsLink,
    catalog: Catalog,
    provider: HandProvider,
    *,
    quota: Quota | None = None,
    heartbeat_s: float = 3_600.0,  # so long that only events cause reports
) -> AsyncIterator[Lanes]:
    lanes = Lanes()
    await (await link.watches.start(LANES, lanes.on_entry)).wait()
    wanted = [Want("anisora", "anisora-0"), Want("phr00t", "phr00t-0")]
    windows = replace(catalog.windows, heartbeat_s=heartbeat_s)
    supervisor = Supervisor(link, provider, wanted, quota or Quota(None, catalog.models), windows, drain_s=5.0)
    stop, hurry = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(supervisor.run(stop, hurry))
    try:
        yield lanes
    finally:
        stop.set()
        await asyncio.wait([running], timeout=None if not provider.drains else 0.1)
        assert running.done() is not provider.drains  # waits for a lane that drains, until asked to hurry
        hurry.set()
        await running


def spoken(pid: int, state: LaneState, *, in_hand: InHand | None = None) -> bytes:
    """A heartbeat of anisora-0."""
    return msgspec.json.encode(
        lane_report(state=state, slot="by-hand", pid=pid, started_at=datetime.now(UTC), in_hand=in_hand)
    )


async def warm(link: NatsLink, provider: HandProvider, lanes: Lanes) -> HandLane:
    """The lane anisora-0, process 100, which has reported `warm`."""
    await lanes.becomes("anisora-0", LaneState.STARTING)
    lane = provider.lanes["anisora-0"]
    lane.pid = 100
    await link.entries.put(LANES, "anisora.anisora-0", spoken(100, LaneState.WARM))
    await lanes.becomes("anisora-0", LaneState.WARM)
    return lane


async def test_the_last_report_of_a_dead_lane_is_withdrawn(link: NatsLink, catalog: Catalog) -> None:
    """The supervisor withdraws a `warm` that was on its way when the lane died, but not its successor's report."""
    provider = HandProvider()
    async with by_hand(link, catalog, provider) as lanes:
        lane = await warm(link, provider, lanes)
        lane.dies()
        said = await lanes.becomes("anisora-0", LaneState.STARTING)
        assert (said.pid, said.slot) == (os.getpid(), "by-hand")
        await link.entries.put(LANES, "anisora.anisora-0", spoken(100, LaneState.BUSY))
        await lanes.hears("anisora-0", LaneState.BUSY, 100)
        await lanes.becomes("anisora-0", LaneState.STARTING)

        lane.pid = 101
        await link.entries.put(LANES, "anisora.anisora-0", spoken(101, LaneState.WARM))
        provider.lanes["phr00t-0"].dies()  # the supervisor goes through all lanes
        await eventually(lambda: asyncio.sleep(0, "ended" in getattr(lanes.last("phr00t-0"), "detail", "")))
        assert lanes.states("anisora-0")[-1] == (LaneState.WARM, 101)
    last = lanes.last("anisora-0")
    assert last is not None
    assert last.pid == 101  # the supervisor must not remove this one
    await lanes.are_gone("phr00t-0")


async def test_a_report_of_the_successor_that_comes_in_between_wins(link: NatsLink, catalog: Catalog) -> None:
    """The new process reports after the supervisor has read the dead one's entry: compare-and-set refuses."""
    provider = HandProvider()
    async with by_hand(link, catalog, provider) as lanes:
        lane = await warm(link, provider, lanes)
        update = link.entries.update

        async def overtaken(bucket: str, key: str, value: bytes, *, revision: int, ttl_s: float | None = None) -> int:
            lane.pid, link.entries.update = 101, update  # type: ignore[method-assign]
            await link.entries.put(LANES, key, spoken(101, LaneState.WARM))
            return await update(bucket, key, value, revision=revision, ttl_s=ttl_s)

        link.entries.update = overtaken  # type: ignore[method-assign]
        lane.dies()
        await eventually(lambda: asyncio.sleep(0, lanes.states("anisora-0")[-1] == (LaneState.WARM, 101)))
        provider.lanes["phr00t-0"].dies()
        await eventually(lambda: asyncio.sleep(0, "ended" in getattr(lanes.last("phr00t-0"), "detail", "")))
        assert lanes.states("anisora-0")[-2:] == [(LaneState.WARM, 100), (LaneState.WARM, 101)]


async def test_a_start_that_ends_with_its_process_is_recorded_once(link: NatsLink, catalog: Catalog) -> None:
    """SC-006. The supervisor does not record it if the lane recorded it itself, or had been warm."""
    provider = HandProvider()
    async with by_hand(link, catalog, provider) as lanes:
        await lanes.becomes("anisora-0", LaneState.STARTING)
        lane = provider.lanes["anisora-0"]
        lane.dies("killed while it loaded")
        own = ColdStart(
            model="anisora",
            worker="anisora-0",
            started_at=lane.began_at,
            ended_at=datetime.now(UTC),
            seconds=None,
            detail="the slot is taken, it said",
        )
        await link.entries.put(COLD_STARTS, "anisora", msgspec.json.encode(own))
        lane.dies("status 1: the slot is taken")
        lane.pid = 100
        await link.entries.put(LANES, "anisora.anisora-0", spoken(100, LaneState.WARM))
        await lanes.becomes("anisora-0", LaneState.WARM)
        provider.lanes["phr00t-0"].dies()  # the supervisor goes through all lanes: it has heard that too
        await eventually(lambda: asyncio.sleep(0, "ended" in getattr(lanes.last("phr00t-0"), "detail", "")))
        lane.dies("killed when it was warm")
        lane.dies("killed again")

        async def recorded() -> list[str] | None:
            details = [start.detail for start in await starts_of(link, "anisora-0")]
            return details if details[-1:] == ["killed again"] else None

        await eventually(recorded)
    # in the order of their ends
    assert await recorded() == ["killed while it loaded", "the slot is taken, it said", "killed again"]


@pytest.mark.parametrize("heard", ["before", "after"])
async def test_the_task_of_a_dead_lane_is_given_back(link: NatsLink, catalog: Catalog, heard: str) -> None:
    """This holds whether its last report came before the news of its death or after it. A process that is no child of
    this supervisor keeps its task, such as a draining lane of an earlier supervisor."""
    task = processing_task(now=datetime.now(UTC), lease_s=3_600)
    await link.entries.create(TASKS, TASK_ID, encode_task(task))
    in_hand = InHand(task_id=TASK_ID, owner="owner-1")
    provider = HandProvider()
    async with by_hand(link, catalog, provider) as lanes:
        await lanes.becomes("anisora-0", LaneState.STARTING)
        lane = provider.lanes["anisora-0"]
        lane.pid = 200
        await link.entries.put(LANES, "anisora.anisora-0", spoken(100, LaneState.BUSY, in_hand=in_hand))
        await lanes.hears("anisora-0", LaneState.BUSY, 100)
        lane.dies()
        await lanes.becomes("anisora-0", LaneState.STARTING)
        provider.lanes["phr00t-0"].dies()  # the supervisor has gone through all lanes
        await eventually(lambda: asyncio.sleep(0, "ended" in getattr(lanes.last("phr00t-0"), "detail", "")))
        assert await record_of(link) == task

        lane.pid = 100
        word = spoken(100, LaneState.BUSY, in_hand=in_hand)
        if heard == "before":
            await link.entries.put(LANES, "anisora.anisora-0", word)
            await lanes.becomes("anisora-0", LaneState.BUSY)
        lane.dies()
        if heard == "after":
            await link.entries.put(LANES, "anisora.anisora-0", word)

        async def given_back() -> bool:
            return (await record_of(link)).timeline[-1].event == "worker_lost"

        await eventually(given_back)


def test_the_task_of_a_dead_lane_is_known_though_its_successor_speaks_first() -> None:
    """This happens, for example, when the supervisor could not reach the server meanwhile, and the dead lane's last
    report is overwritten."""
    hand, lane = HandLane(lambda _: None), Supervised(Want("anisora", "anisora-0"))
    in_hand, death = InHand(task_id=TASK_ID, owner="owner-1"), Death("signal 9", 100, datetime.now(UTC), again_at_s=0.0)
    lane.granted, hand.pid = hand, 100
    lane.hear(msgspec.json.decode(spoken(100, LaneState.BUSY, in_hand=in_hand), type=LaneHeartbeat))
    assert lane.orphan is None
    hand.pid = None
    lane.died(death, now_s=0.0)
    hand.pid = 101
    lane.hear(msgspec.json.decode(spoken(101, LaneState.WARM), type=LaneHeartbeat))
    assert lane.orphan == (in_hand, death)


async def record_of(link: NatsLink) -> GenerationTask:
    entry = await link.entries.get(TASKS, TASK_ID)
    assert entry is not None
    assert entry.value is not None
    return decode_task(entry.value)


async def test_a_lane_that_leaves_for_the_quota_learns_why_and_its_last_report_is_withdrawn(
    link: NatsLink, catalog: Catalog, tmp_path: Path
) -> None:
    """This holds even if the supervisor leaves before the lane. A lane that leaves with it gets no reason."""
    file = tmp_path / "quota.json"
    file.write_text('{"max_lanes": {}}')
    provider = HandProvider()
    async with by_hand(link, catalog, provider, quota=Quota(file, catalog.models)) as lanes:
        await lanes.becomes("anisora-0", LaneState.STARTING)
        lane = provider.lanes["anisora-0"]
        lane.drained.clear()
        file.write_text('{"max_lanes": {"anisora": 0}}')
        await eventually(lambda: asyncio.sleep(0, lane.leaving_for == "quota"))
        word = msgspec.json.decode(spoken(100, LaneState.DRAINING), type=LaneHeartbeat)
        await link.entries.put(LANES, "anisora.anisora-0", msgspec.json.encode(replace(word, leaving_for="quota")))
        await lanes.becomes("anisora-0", LaneState.DRAINING)
        provider.drains = True  # and it is killed at the end
    await lanes.are_gone("anisora-0", "phr00t-0")
    assert provider.lanes["phr00t-0"].leaving_for is None


async def test_a_denial_of_the_provider_is_reported_and_the_lane_requested_again(
    link: NatsLink, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor reports a provider's own quota as quota. When the quota file changes, it requests the lane again
    at once."""
    file = tmp_path / "quota.json"
    file.write_text('{"max_lanes": {}}')
    provider = HandProvider()
    provider.denies["anisora-0"] = LaneDenied("quota", "your 2 cards are in use")
    monkeypatch.setattr("ops.lanes.supervisor.DENIAL_RETRY_S", 3_600.0)
    async with by_hand(link, catalog, provider, quota=Quota(file, catalog.models)) as lanes:
        assert (await lanes.becomes("anisora-0", LaneState.QUOTA_DENIED)).detail == "your 2 cards are in use"
        provider.denies["anisora-0"] = LaneDenied("capacity", "none left")
        file.write_text('{"max_lanes": {"anisora": 2}}')
        await lanes.becomes("anisora-0", LaneState.CAPACITY_DENIED)
        drained, asked = provider.lanes["phr00t-0"].drained, provider.asked
        drained.clear()
        file.write_text('{"max_lanes": {"phr00t": 0}}')
        await eventually(lambda: asyncio.sleep(0, provider.asked > asked))
        del provider.denies["anisora-0"]
        drained.set()  # and a slot is given back
        await lanes.becomes("phr00t-0", LaneState.QUOTA_DENIED)
        await lanes.becomes("anisora-0", LaneState.STARTING)


async def test_a_denied_lane_is_reported_and_requested_again_and_again(
    link: NatsLink, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = HandProvider()
    provider.denies["anisora-0"] = LaneDenied("capacity", "none left")
    monkeypatch.setattr("ops.lanes.supervisor.DENIAL_RETRY_S", 0.3)
    async with by_hand(link, catalog, provider, heartbeat_s=0.1) as lanes:
        await eventually(lambda: asyncio.sleep(0, provider.asked > 2 and len(lanes.reported) > 4))
        assert lanes.states("anisora-0") == [(LaneState.CAPACITY_DENIED, os.getpid())]
        del provider.denies["anisora-0"]
        await lanes.becomes("anisora-0", LaneState.STARTING)


async def test_a_lane_that_drains_is_waited_for_but_not_in_a_hurry(link: NatsLink, catalog: Catalog) -> None:
    provider = HandProvider()
    async with by_hand(link, catalog, provider) as lanes:
        await lanes.becomes("anisora-0", LaneState.STARTING)
        provider.drains = True
        provider.lanes["anisora-0"].drained.clear()


async def test_a_process_that_is_stopped_while_it_is_being_started(tmp_path: Path) -> None:
    process = Process("sleeper", ["sleep", "600"], log_file=tmp_path / "log", on_death=lambda *_: None)
    running = asyncio.create_task(process.run())
    await asyncio.sleep(0)  # the process is forked, but its handle is not known yet
    assert process.pid is None
    await process.stop(within_s=60)
    async with asyncio.timeout(60):
        await running
