"""The supervisor on a real server: what it reports of lanes that are denied, that die and that cannot start.

With `warmlane supervisor` and real lanes, beside a real gateway; where the order of two writes matters, with a provider
that is played by hand.
"""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest
from msgspec.structs import replace

from contracts.lanes import ColdStart, InHand, LaneHeartbeat, LaneState, LeavingFor
from contracts.settings import Catalog
from contracts.tasks import GenerationTask, TaskStatus, decode_task, encode_task
from contracts.topology import COLD_STARTS, LANES, TASKS
from gateway.boards.cold_starts import ColdStarts
from gateway.boards.lane_board import LaneBoard
from ops.lanes.plan import Death, Want
from ops.lanes.providers import GrantedLane, LaneDenied
from ops.lanes.quota import Quota
from ops.lanes.supervisor import Supervised, Supervisor
from ops.machine.processes import Process, warmlane_command
from ops.nats.bucket import Versioned
from ops.nats.buckets import HEARTBEATS
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from tests.kit.gateway import System, fresh_system, report_lane
from tests.kit.records import TASK_ID, lane_report, processing_task
from tests.kit.support import (
    below,
    children_of,
    clean_environment,
    command_line,
    eventually,
    is_running,
    settings_file,
    shared_forks,
)

pytestmark = pytest.mark.usefixtures("forks")


class Lanes:
    """The reports of lanes, in the order in which the server stored them."""

    def __init__(self) -> None:
        self.reported: list[tuple[str, LaneHeartbeat | None]] = []
        self.entries: list[Entry] = []

    def on_entry(self, entry: Entry) -> None:
        self.entries.append(entry)
        value = None if entry.value is None else msgspec.json.decode(entry.value, type=LaneHeartbeat)
        self.reported.append((entry.key.partition(".")[2], value))

    def last(self, name: str) -> LaneHeartbeat | None:
        return next((value for key, value in reversed(self.reported) if key == name), None)

    def states(self, name: str) -> list[tuple[LaneState, int]]:
        """State and process of every report, without repetitions."""
        reported = [(value.state, value.pid) for key, value in self.reported if key == name and value is not None]
        return [now for before, now in zip([None, *reported], reported, strict=False) if now != before]

    async def becomes(self, name: str, state: LaneState) -> LaneHeartbeat:
        async def look() -> LaneHeartbeat | None:
            last = self.last(name)
            return last if last is not None and last.state is state else None

        try:
            found = await eventually(look, within_s=60)
        except AssertionError:
            raise AssertionError(f"{name} is never {state}: {self.reported[-10:]}") from None
        assert found is not None
        return found

    async def hears(self, name: str, state: LaneState, pid: int) -> None:
        """Returns when *pid* has reported *state*, which may have been overwritten by then."""
        await eventually(lambda: asyncio.sleep(0, (state, pid) in self.states(name)))

    async def holds(self, name: str, task_id: str) -> None:
        """Returns when the lane reports that it runs *task_id*."""

        async def look() -> bool:
            last = self.last(name)
            return last is not None and last.in_hand is not None and last.in_hand.task_id == task_id

        await eventually(look)

    def causes(self, model: str, *, since: int) -> list[str | None]:
        """What routing said after each entry from number *since* on, without repetitions: None is a lane."""
        board = LaneBoard(health_timeout_s=60, grace_s=10)
        causes: list[str | None] = []
        for number, entry in enumerate(self.entries):
            board.on_lane(Versioned(HEARTBEATS, entry))
            cause = board.cause(model, entry.time)
            if number >= since and [cause] != causes[-1:]:
                causes.append(cause)
        return causes

    async def are_gone(self, *names: str) -> None:
        await eventually(lambda: asyncio.sleep(0, all(self.last(name) is None for name in names)))


class Rig:
    """`warmlane supervisor` on the server of a gateway."""

    def __init__(self, system: System, lanes: Lanes, data_dir: Path, process: subprocess.Popen[bytes]) -> None:
        self.system, self.lanes, self.data_dir, self.process = system, lanes, data_dir, process

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = (self.data_dir / "supervisor.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def lane_pids(self) -> list[int]:
        return [pid for pid in children_of(self.process.pid) if "warmlane lane" in command_line(pid)]

    async def route_of(self, model: str) -> str:
        """Where the gateway sends a request now."""
        task = await self.system.submit(model)
        decision = (await self.system.record(task["id"]))[0].decision
        assert decision is not None
        await self.system.http.delete(f"/tasks/{task['id']}")
        return decision.outcome

    async def routes(self, model: str, outcome: str) -> None:
        """Returns when the gateway sends requests there: it hears of lanes as we do, at its own moment."""

        async def look() -> bool:
            return await self.route_of(model) == outcome

        await eventually(look)


async def starts_of(link: NatsLink, name: str) -> list[ColdStart]:
    """The cold starts of one lane, the oldest first."""
    known = ColdStarts()
    await known.start(link)
    return [start for start in known.newest_first()[::-1] if start.worker == name]


def _popen(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=log, stderr=log, env=clean_environment() | shared_forks())


@asynccontextmanager
async def supervised(system: System, data_dir: Path, *options: str) -> AsyncIterator[Rig]:
    """The supervisor runs; at the end it is asked to leave, and must leave nothing."""
    lanes = Lanes()
    link = await NatsLink.connect(system.gateway.nats.url, name="looker")
    await (await link.watches.start(LANES, lanes.on_entry)).wait()
    data_dir.mkdir(exist_ok=True)
    command = warmlane_command(
        "supervisor", "--nats-url", system.gateway.nats.address, "--data-dir", str(data_dir), *options
    )
    with (data_dir / "supervisor.log").open("ab") as log:
        process = await asyncio.to_thread(_popen, command, log)
    rig = Rig(system, lanes, data_dir, process)
    try:
        yield rig
        started = below(process.pid, data_dir / "logs")
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0, (data_dir / "supervisor.log").read_text()
        assert [pid for pid in started if is_running(pid)] == []
        await lanes.are_gone("anisora-0", "phr00t-0")
    finally:
        process.send_signal(signal.SIGQUIT)
        await asyncio.to_thread(process.wait, 60)
        await link.close()


async def test_the_only_slot_is_the_degraded_workers(bare_system: System, tmp_path: Path) -> None:
    """N = 1: both lanes are denied, also where an earlier run left a lane that looks warm."""
    await report_lane(bare_system.link, "anisora", LaneState.WARM)
    async with supervised(bare_system, tmp_path / "data", "--gpus", "1") as rig:
        for model in ("anisora", "phr00t"):
            denied = await rig.lanes.becomes(f"{model}-0", LaneState.CAPACITY_DENIED)
            assert (denied.detail, denied.slot) == ("the only slot is the degraded worker's", "")
            await rig.routes(model, "degraded: capacity")
        assert rig.lane_pids() == []


@pytest.fixture
async def quick_system(tmp_path: Path) -> AsyncIterator[System]:
    """A gateway that judges leases 1 s after it has connected, and not 10 s: a lane is warm sooner than that."""
    async with fresh_system(tmp_path, settings_file(tmp_path, reconnect_grace_s=1.0)) as system:
        yield system


async def test_a_quota_that_rises_and_falls_and_a_lane_that_is_killed(quick_system: System, tmp_path: Path) -> None:
    quota = tmp_path / "quota.json"
    quota.write_text('{"max_lanes": {"phr00t": 0}}')
    data_dir = quick_system.gateway.data_dir
    options = ("--lanes", "phr00t=1", "--quota", str(quota), "--step-seconds", "0.3")
    async with supervised(quick_system, data_dir, *options) as rig:
        denied = await rig.lanes.becomes("phr00t-0", LaneState.QUOTA_DENIED)
        assert denied.detail == "the quota file allows 0 of phr00t"
        await rig.routes("phr00t", "degraded: quota")

        quota.write_text('{"max_lanes": {"phr00t": "many"}}')
        await eventually(lambda: asyncio.sleep(0, [line for line in rig.log if line["event"] == "quota_ignored"]))
        assert rig.lanes.states("phr00t-0")[-1][0] is LaneState.QUOTA_DENIED

        quota.write_text('{"max_lanes": {"phr00t": 1}}')
        await rig.lanes.becomes("phr00t-0", LaneState.WARM)
        await rig.routes("phr00t", "lane")

        in_hand = (await quick_system.submit("phr00t"))["id"]
        await rig.lanes.holds("phr00t-0", in_hand)
        (killed,) = rig.lane_pids()
        given = Path(f"/proc/{killed}/environ").read_bytes()  # its own password, and not the supervisor's
        assert (b"pw-lane" in given, b"pw-supervisor" in given, b"pw-admin" in given) == (True, False, False)
        os.kill(killed, signal.SIGKILL)
        # nobody waits for the end of its lease
        requeued = await quick_system.becomes(in_hand, TaskStatus.PENDING, epoch=1)
        assert [(line.event, line.detail) for line in requeued.timeline[-2:]] == [
            ("worker_lost", "the process of phr00t-0 ended: signal 9, SIGKILL"),
            ("requeue", "phr00t-0 was lost in attempt 1"),
        ]
        await quick_system.http.delete(f"/tasks/{in_hand}")
        # what the supervisor says comes between the last word of the old process and the first one of the new
        new = await rig.lanes.becomes("phr00t-0", LaneState.WARM)
        assert new.pid not in (killed, rig.process.pid)
        speakers = [pid for _, pid in rig.lanes.states("phr00t-0")]
        assert list(dict.fromkeys(speakers[speakers.index(killed) :])) == [killed, rig.process.pid, new.pid]
        assert speakers[-1] == new.pid
        said = next(beat for _, beat in rig.lanes.reported[::-1] if beat is not None and beat.pid == rig.process.pid)
        assert said.detail.startswith("ended (signal 9, SIGKILL); ")
        await rig.routes("phr00t", "lane")

        task = await quick_system.submit("phr00t")
        await quick_system.becomes(task["id"], TaskStatus.PROCESSING, epoch=0)
        served = len(rig.lanes.entries)
        quota.write_text('{"max_lanes": {"phr00t": 0}}')
        draining = await rig.lanes.becomes("phr00t-0", LaneState.DRAINING)
        assert (draining.pid, draining.leaving_for) == (new.pid, "quota")
        await rig.routes("phr00t", "degraded: quota")
        await rig.lanes.becomes("phr00t-0", LaneState.QUOTA_DENIED)
        # at no moment in between was it anything else, the one of its process's end included
        assert [cause for cause in rig.lanes.causes("phr00t", since=served) if cause] == ["quota"]
        assert (LaneState.DRAINING, new.pid) in rig.lanes.states("phr00t-0")
        record, _ = await quick_system.record(task["id"])
        assert (record.status.value, record.attempt) == ("done", 1)
        assert rig.lane_pids() == []


async def test_a_lane_that_cannot_start_is_no_denial(bare_system: System, tmp_path: Path) -> None:
    """N = 2: one lane crash-loops, with its last error; the other has no slot. Both facts stand side by side."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "artifacts").write_text("no folder")
    async with supervised(bare_system, data_dir, "--gpus", "2") as rig:
        looping = await rig.lanes.becomes("anisora-0", LaneState.CRASH_LOOPING)
        assert looping.slot == "cpu-0"
        assert "3 times in a row it ended before it was warm; the last: status 1: " in looping.detail
        assert str(data_dir / "artifacts") in looping.detail
        assert "; again in " in looping.detail
        denied = await rig.lanes.becomes("phr00t-0", LaneState.CAPACITY_DENIED)
        assert denied.detail == "the only slot for lanes is taken"
        (data_dir / "artifacts").unlink()  # repaired: it comes by itself
        await rig.lanes.becomes("anisora-0", LaneState.WARM)
        deaths = [line for line in rig.log if line["event"] == "lane_ended"]

        async def recorded() -> list[ColdStart] | None:
            starts = await starts_of(bare_system.link, "anisora-0")
            return starts if len(starts) > len(deaths) else None

        starts = await eventually(recorded)
        assert starts is not None
        assert [start.seconds is None for start in starts] == [*(True for _ in deaths), False]
        assert str(data_dir / "artifacts") in starts[0].detail


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--lanes", "sora=1"], "no model is called sora"),
        (["--gpus", "0"], "0 is not in the range"),
        (["--quota", "{folder}/none.json"], "does not exist"),
        (["--quota", "{folder}/bad.json"], "names sora; there are anisora, phr00t"),
    ],
)
def test_impossible_options_are_reported(options: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"max_lanes": {"sora": 1}}')
    arguments = [option.format(folder=tmp_path) for option in options]
    command = warmlane_command("supervisor", "--data-dir", str(tmp_path / "data"), *arguments)
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
    assert result.returncode in (1, 2)
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


async def test_one_supervisor_to_a_folder(bare_system: System, tmp_path: Path) -> None:
    async with supervised(bare_system, tmp_path / "data", "--gpus", "1") as rig:
        await rig.lanes.becomes("anisora-0", LaneState.CAPACITY_DENIED)
        command = warmlane_command("supervisor", "--data-dir", str(rig.data_dir))
        second = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
        assert second.returncode == 1
        assert "another `warmlane supervisor` uses" in second.stderr


class HandLane:
    """A lane whose process is played by hand."""

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
    heartbeat_s: float = 3_600.0,  # what is reported is reported because something happened
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
        assert running.done() is not provider.drains  # it waits for a lane that drains, until it is asked to hurry
        hurry.set()
        await running


def spoken(pid: int, state: LaneState, *, in_hand: InHand | None = None) -> bytes:
    """A heartbeat of anisora-0."""
    return msgspec.json.encode(
        lane_report(state=state, slot="by-hand", pid=pid, started_at=datetime.now(UTC), in_hand=in_hand)
    )


async def test_the_last_report_of_a_dead_lane_is_withdrawn(link: NatsLink, catalog: Catalog) -> None:
    """A `warm` that was on its way when the lane died is withdrawn; its successor's report is not."""
    provider = HandProvider()
    async with by_hand(link, catalog, provider) as lanes:
        await lanes.becomes("anisora-0", LaneState.STARTING)
        lane = provider.lanes["anisora-0"]
        lane.pid = 100
        await link.entries.put(LANES, "anisora.anisora-0", spoken(100, LaneState.WARM))
        await lanes.becomes("anisora-0", LaneState.WARM)
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
    assert last.pid == 101  # not the supervisor's to remove
    await lanes.are_gone("phr00t-0")


async def test_a_report_of_the_successor_that_comes_in_between_wins(link: NatsLink, catalog: Catalog) -> None:
    """The new process reports after the supervisor has read the dead one's entry: compare-and-set refuses."""
    provider = HandProvider()
    async with by_hand(link, catalog, provider) as lanes:
        await lanes.becomes("anisora-0", LaneState.STARTING)
        lane = provider.lanes["anisora-0"]
        lane.pid = 100
        await link.entries.put(LANES, "anisora.anisora-0", spoken(100, LaneState.WARM))
        await lanes.becomes("anisora-0", LaneState.WARM)
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
    """SC-006: but not if the lane recorded it itself, nor if it had been warm."""
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
    # by the moments at which they ended
    assert await recorded() == ["killed while it loaded", "the slot is taken, it said", "killed again"]


@pytest.mark.parametrize("heard", ["before", "after"])
async def test_the_task_of_a_dead_lane_is_given_back(link: NatsLink, catalog: Catalog, heard: str) -> None:
    """Whether its last word came before the news of its death or after it. A process that is no child of ours, as one
    of an earlier supervisor that drains, keeps its task."""
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
    """For example when the supervisor could not reach the server meanwhile, and the dead one's last report is
    overwritten."""
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
    """Also if the supervisor leaves before the lane does; a lane that leaves with its supervisor gets no reason."""
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
    """A provider's own quota is reported as quota. When the quota file changes, the lane is requested again at once."""
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
    await asyncio.sleep(0)  # it is forked, and nobody has its handle yet
    assert process.pid is None
    await process.stop(within_s=60)
    async with asyncio.timeout(60):
        await running
