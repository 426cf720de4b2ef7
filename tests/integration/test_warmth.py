"""When a lane gives up its warm pipeline, and when it does not: lanes in this process, with real pipeline hosts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from contracts.lanes import LaneState, SlotState, VideoPipelineSlot
from contracts.settings import Catalog, Warmth, load_settings
from contracts.tasks import FailureCode, GenerationTask, TaskStatus
from contracts.topology import SLOTS, demand_subject
from degraded_worker import worker as degraded_module
from degraded_worker.worker import DegradedWorker
from gateway.boards.cold_starts import ColdStarts
from lane_worker.forking.slot import lock_path, read_note
from lane_worker.runtime import streak
from lane_worker.runtime.cold_start import EVICTED
from lane_worker.runtime.keeping import Keeping
from lane_worker.runtime.warmth import READY, Others
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from tests.kit.behind import client_of
from tests.kit.degraded import becomes, leading, place, setup_of, shown, task_of
from tests.kit.gateway import System, fresh_system
from tests.kit.lanes import Lane, SharedForkServer, StateLog
from tests.kit.support import eventually, is_running, settings_file

pytestmark = pytest.mark.usefixtures("forks", "rogue_forks")

NEVER = Warmth(recycle_after_tasks=0, recycle_residue_bytes=0, evict_idle_s=0)


class Lanes:
    """Up to two lanes of one model, which start with the wanted warmth."""

    def __init__(self, link: NatsLink, catalog: Catalog, folder: Path, forks: SharedForkServer) -> None:
        self.link = link
        self._catalog, self._folder, self._forks = catalog, folder, forks
        self._lanes: list[Lane] = []
        self.states = StateLog()
        self._tasks = 0

    async def start(self, warmth: Warmth, *, count: int = 1) -> list[Lane]:
        windows = replace(self._catalog.windows, heartbeat_s=0.5)
        catalog = replace(self._catalog, windows=windows, warmth=warmth)
        self._lanes = [
            Lane(self.link, catalog, self._folder, number=number, fork_server=self._forks) for number in range(count)
        ]
        await self.states.start(self.link)
        for lane in self._lanes:
            lane.start()
        for lane in self._lanes:
            await self.states.reports(lane.name, LaneState.WARM)  # it may give its pipeline up soon
        return self._lanes

    async def run(self, prompt: str = "a red fox") -> GenerationTask:
        """Places a task, and returns it when it is done."""
        return await becomes(self.link, await self.place(prompt), TaskStatus.DONE)

    async def fail(self, prompt: str) -> None:
        """Places a task; returns when it has ended as `inference_failed`."""
        failed = await becomes(self.link, await self.place(prompt), TaskStatus.FAILED)
        assert failed.error is not None
        assert failed.error.code is FailureCode.INFERENCE_FAILED

    async def place(self, prompt: str = "a red fox", **parameters: int) -> GenerationTask:
        self._tasks += 1
        task = task_of("phr00t", self._tasks)
        wanted = replace(task.parameters, prompt=prompt, **parameters)
        return await place(self.link, replace(task, route="lane", parameters=wanted))

    async def leave(self) -> None:
        for lane in self._lanes:
            await lane.leave()


@pytest.fixture
async def lanes(link: NatsLink, catalog: Catalog, tmp_path: Path) -> AsyncIterator[Lanes]:
    forks = SharedForkServer()
    lanes = Lanes(link, catalog, tmp_path, forks)
    yield lanes
    await lanes.leave()
    await forks.close_at_last()


async def unloaded(link: NatsLink, lane: Lane) -> None:
    """Returns when the lane's slot is empty: until then it takes tasks that were sent before the eviction was known."""

    async def empty() -> bool:
        slot = await shown(link, lane.slot)
        return slot is not None and (slot.state, slot.model) == (SlotState.EMPTY, None)

    await eventually(empty)


async def test_the_pipeline_stays_until_it_is_worn_out_then_it_is_loaded_in_a_fresh_host(lanes: Lanes) -> None:
    """FR-019: worn out by tasks or by the memory that they leave. A lone lane reloads when nothing waits."""
    (lane,) = await lanes.start(replace(NEVER, recycle_after_tasks=3, recycle_residue_bytes=150_000_000))
    states, begun = lanes.states, len(lanes.states.seen)
    first = lane.host
    tasks = [await lanes.run() for _ in range(2)]
    assert lane.host == first
    assert [task.swap for task in tasks] == [None, None]

    waiting = [await lanes.place() for _ in range(3)]  # the pipeline's third task is not its last: others wait
    tasks = [await becomes(lanes.link, task, TaskStatus.DONE) for task in waiting]
    assert [task.swap for task in tasks] == [None, None, None]
    heartbeat = await states.reports(lane.name, LaneState.LOADING, since=begun)
    assert "recycled" in heartbeat.detail
    await lane.becomes(LaneState.WARM)
    second = lane.host
    assert second != first
    assert not is_running(first)

    await lanes.run("leak 200 MB")
    await states.reports(lane.name, LaneState.LOADING, when=lambda each: "MB behind" in each.detail)
    await lane.becomes(LaneState.WARM)
    assert lane.host != second
    assert (await lanes.run()).swap is None
    assert LaneState.UNHEALTHY not in states.states(lane.name)
    starts = ColdStarts()
    await starts.start(lanes.link)
    (start,) = starts.newest_first()  # a recycle is no cold start
    assert start.seconds is not None


async def test_residue_is_counted_from_the_warm_up_also_in_a_host_that_had_none(lanes: Lanes) -> None:
    """A task that ran out of memory made the lane reload. If the lane counted from the memory after the load, the next
    large task would look like a leak."""
    (lane,) = await lanes.start(NEVER)
    keeping = lane._worker._keeping
    loaded, clean = keeping.loaded, keeping.clean
    assert None not in (loaded, clean)
    first = lane.host
    assert (await lanes.run("oom in step 3 in a used host")).swap is not None
    await lanes.run()
    assert lane.host != first
    assert keeping.loaded is not loaded
    assert keeping.clean is clean


async def test_two_worn_out_lanes_never_reload_at_the_same_time(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds although each has seen the other one warm. One of them looks again only when the other has decided."""
    states = StateLog()
    await states.start(lanes.link)
    looks = {"phr00t-0": 0, "phr00t-1": 0}
    look = Keeping._others

    async def both_have_looked() -> bool:
        return min(looks.values()) > 0

    async def the_other_has_decided() -> bool:
        reports = [moment["phr00t-0"] for moment in states.seen if "phr00t-0" in moment]
        left_service = any(heartbeat.detail == "about to be recycled" for heartbeat in reports)
        return reports[-1].detail.startswith("recycled") or (left_service and reports[-1].state in READY)

    async def slow_look(keeping: Keeping) -> Others:
        if looks[keeping._worker] == 0:
            seen = await look(keeping)
            looks[keeping._worker] = 1  # only after its look: the other one goes on at once
            await eventually(both_have_looked)
            return seen
        looks[keeping._worker] += 1
        if looks["phr00t-1"] == 2 and keeping._worker == "phr00t-1":
            await eventually(the_other_has_decided)
        return await look(keeping)

    monkeypatch.setattr(Keeping, "_others", slow_look)
    both = await lanes.start(replace(NEVER, recycle_after_tasks=5), count=2)
    hosts = {lane.name: lane.host for lane in both}
    for _ in range(2):
        tasks = [await lanes.place() for _ in range(5)]
        for task in tasks:
            assert (await becomes(lanes.link, task, TaskStatus.DONE)).attempt == 1

    async def both_recycled() -> bool:
        for lane in both:
            await lane.becomes(LaneState.WARM)  # a lane that serves alone would wear out twice
        if all(lane.host != hosts[lane.name] for lane in both):
            return True
        await lanes.run()
        return False

    await eventually(both_recycled)
    away = [sum(each.detail.startswith("recycled") for each in moment.values()) for moment in states.seen]
    assert max(away) == 1


async def test_an_idle_lane_unloads_and_is_warm_again_on_demand(lanes: Lanes) -> None:
    """Its process, its host and its slot stay. Its reload is timed as a start of its own."""
    starts = ColdStarts()
    await starts.start(lanes.link)
    (lane,) = await lanes.start(replace(NEVER, evict_idle_s=1))
    host = lane.host
    heartbeat = await lanes.states.reports(lane.name, LaneState.EVICTED)

    await unloaded(lanes.link, lane)
    assert lane.host == host
    evicted = len(lanes.states.seen)
    await client_of(lanes.link).publish(demand_subject("phr00t"), b"")
    warm = await lanes.states.reports(lane.name, LaneState.WARM, since=evicted)
    assert (warm.pid, warm.started_at) == (heartbeat.pid, heartbeat.started_at)
    assert (await lanes.run()).attempt == 1

    async def both() -> bool:
        return len(starts.newest_first()) >= 2

    await eventually(both)
    first, second = starts.newest_first()[::-1][:2]
    assert (first.detail, second.detail) == ("", EVICTED)
    assert second.seconds is not None
    assert second.started_at > first.ended_at


async def test_a_task_that_was_sent_before_the_eviction_was_known_is_run(lanes: Lanes) -> None:
    """It runs without a demand for the lane: the gateway that sent it believed that the lane was warm."""
    (lane,) = await lanes.start(replace(NEVER, evict_idle_s=0.5))
    await lane.becomes(LaneState.EVICTED)
    assert (await lanes.run()).swap is None


# ── with a gateway ───────────────────────────────────────────────────────────────────────────────────────────────────


class Served(System):
    """A system whose gateway has real workers."""

    async def run(self, model: str) -> GenerationTask:
        """Sends a request for *model*, which is held until a worker takes it; returns the task when it is done."""
        answer = await self.post(model)
        assert answer.status_code == 202, answer.text

        async def done() -> GenerationTask | None:
            task, _ = await self.record(answer.json()["id"])
            return task if task.status.is_terminal else None

        task = await eventually(done, within_s=60)
        assert task is not None
        assert task.status is TaskStatus.DONE, task
        return task


@asynccontextmanager
async def degraded_worker(
    link: NatsLink, catalog: Catalog, folder: Path, forks: SharedForkServer
) -> AsyncIterator[str]:
    """A degraded worker that leads, in this process; yields its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(degraded_module, "ForkServer", lambda: forks)
        worker = DegradedWorker(setup_of(link, catalog, folder, "cpu-9", name="degraded-0"))
    async with leading(worker, link, "degraded-0"):
        yield "degraded-0"


FAILS = "raise a shape"  # not an error that is known to break a process


async def test_tasks_that_fail_in_a_row_renew_the_host_then_the_lane_rests_until_it_has_tried_itself(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind of failure does not matter (ADR 0026)."""
    monkeypatch.setattr(streak, "REST_FIRST_S", 1.0)
    (lane,) = await lanes.start(replace(NEVER, renew_after_failures=2))
    first = lane.host
    states = StateLog()
    await states.start(lanes.link)
    await lanes.fail(FAILS)
    await lanes.run()  # a task that is done: the row is broken
    await lanes.fail(FAILS)
    invalid = await lanes.place("x", num_frames=10_000)  # a client's mistake says nothing about the lane
    assert (await becomes(lanes.link, invalid, TaskStatus.FAILED)).error is not None
    assert lane.host == first
    await lanes.fail(FAILS)
    await states.reports(
        lane.name, LaneState.LOADING, when=lambda each: each.detail.startswith("2 tasks in a row failed")
    )
    await lane.becomes(LaneState.WARM)
    second = lane.host
    assert second != first
    assert not is_running(first)

    await lanes.fail(FAILS)
    heartbeat = await states.reports(lane.name, LaneState.UNHEALTHY)
    assert heartbeat.detail == "1 task failed, in a fresh process too; it tries itself again in 1 s"
    waiting = await lanes.place()
    await becomes(lanes.link, waiting, TaskStatus.DONE)
    assert lane.host == second, "what has just run is not loaded anew"
    await lanes.fail(FAILS)  # the one task that was done has cleared all failures
    await lane.becomes(LaneState.WARM)
    seen = states.states(lane.name)
    rest = seen.index(LaneState.UNHEALTHY)
    assert seen[rest : rest + 4] == [LaneState.UNHEALTHY, LaneState.LOADING, LaneState.WARM, LaneState.BUSY]
    assert seen.count(LaneState.UNHEALTHY) == 1


async def test_a_degraded_worker_begins_anew_when_tasks_fail_in_a_row(
    link: NatsLink, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a standby could replace it: it gives the leadership back, and takes it again if no standby does."""
    monkeypatch.setattr(streak, "REST_FIRST_S", 1.0)
    forks = SharedForkServer()
    catalog = replace(catalog, warmth=replace(NEVER, renew_after_failures=2))
    lock = lock_path(tmp_path / "locks", "cpu-9")
    async with degraded_worker(link, catalog, tmp_path, forks) as name:
        seen: list[VideoPipelineSlot] = []  # what the worker has shown of its slot

        def on_slot(entry: Entry) -> None:
            if entry.value is not None:
                seen.append(msgspec.json.decode(entry.value, type=VideoPipelineSlot))

        await (await link.watches.start(SLOTS, on_slot)).wait()
        hosts: list[int] = []  # the host that ran each of the tasks
        for number in range(3):
            task = task_of("phr00t", number)
            bad = replace(task, parameters=replace(task.parameters, prompt=FAILS))
            failed = await becomes(link, await place(link, bad), TaskStatus.FAILED)
            assert failed.error is not None
            assert failed.error.code is FailureCode.INFERENCE_FAILED
            note = read_note(lock)
            assert note is not None
            hosts.append(note.pid)
        assert hosts[0] != hosts[2]
        assert not is_running(hosts[0])
        rests = "1 task failed, in a fresh process too"
        resting = await eventually(
            lambda: asyncio.sleep(0, next((each for each in seen if rests in each.detail), None))
        )
        assert resting is not None
        assert (resting.state, resting.worker) == (SlotState.EMPTY, name)
        done = await becomes(link, await place(link, task_of("phr00t", 9)), TaskStatus.DONE)
        assert done.worker == name
    await forks.close_at_last()


async def test_a_request_for_an_evicted_lane_is_served_elsewhere_and_the_next_one_is_served_warm(
    tmp_path: Path,
) -> None:
    """From end to end: the gateway sees that the only lane has unloaded, and asks for it as it sends the request on."""
    settings = settings_file(tmp_path)
    catalog = load_settings(settings).catalog("tiny")
    forks = SharedForkServer()
    async with fresh_system(tmp_path, settings) as alone:
        system, folder = Served(alone.gateway, alone.link, alone.http), alone.gateway.data_dir
        lanes = Lanes(system.link, catalog, folder, forks)
        async with degraded_worker(system.link, catalog, folder, forks) as degraded:
            (lane,) = await lanes.start(replace(NEVER, evict_idle_s=1))
            await lane.becomes(LaneState.EVICTED)
            await unloaded(system.link, lane)

            async def known() -> bool:
                lanes: list[str] = (await system.http.get("/readyz")).json()["models"]["phr00t"]["lanes"]
                return lanes == ["evicted"]

            await eventually(known)
            states = StateLog()
            await states.start(system.link)
            first = await system.run("phr00t")
            assert (first.worker, first.route, first.attempt) == (degraded, "degraded", 1)
            assert first.decision is not None
            assert (first.decision.outcome, first.decision.lanes[0].state) == ("degraded: capacity", "evicted")

            async def has_loaded() -> bool:
                return states.states(lane.name)[:3] == [LaneState.EVICTED, LaneState.LOADING, LaneState.WARM]

            await eventually(has_loaded)  # no other request needs it; by now it may have unloaded again

            async def warm() -> GenerationTask | None:
                task = await system.run("phr00t")
                return task if task.worker == lane.name else None

            second = await eventually(warm)  # on a slow machine it may have unloaded once more
            assert second is not None
            assert (second.route, second.attempt, second.epoch, second.swap) == ("lane", 1, 0, None)
        await lanes.leave()
        await forks.close_at_last()
