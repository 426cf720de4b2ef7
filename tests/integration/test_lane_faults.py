"""However a lane behaves, a task that waits for it ends, and ends once (FR-021 c): a real gateway, server and workers.

The windows are short: a lane task waits 3 s for its lane, then it goes to the degraded worker; a lease lasts 2 s.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.lanes import LaneState
from contracts.settings import load_settings
from contracts.tasks import GenerationTask, TaskStatus, decode_task
from contracts.topology import TASKS, bucket_stream, lane_stream
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.kit.behind import js_of
from tests.kit.degraded import DegradedProcess, leads
from tests.kit.gateway import GatewayProcess, System
from tests.kit.lanes import CutWire, LaneProcess, heartbeat_of
from tests.kit.patient import connected
from tests.kit.support import KEEP_S, eventually, is_running, settings_file, shared_forks

pytestmark = pytest.mark.usefixtures("forks")

MODEL = "phr00t"
STREAM = lane_stream(MODEL)
LANE, DEGRADED = "phr00t-0", "degraded-0"
# The last of several tasks has to be taken in time, even on a busy machine.
SEVERAL_WAIT = pytest.mark.parametrize("scene", [{"wait_limit_s": 10.0}], indirect=True, ids=["10s"])
# As packaged, where no lease has to end: who gets no core for some seconds keeps its task.
PACKAGED_LEASE = {"lease_s": 20.0, "lease_renew_s": 5.0}


class History:
    """Every state of every task, in the order in which the server stored them."""

    def __init__(self) -> None:
        self._seen: dict[str, list[GenerationTask]] = {}
        self._last = 0

    async def start(self, link: NatsLink) -> None:
        await (await link.watches.start(TASKS, self._on_entry)).wait()

    def _on_entry(self, entry: Entry) -> None:
        assert entry.value is not None
        self._last = entry.revision
        self._seen.setdefault(entry.key, []).append(decode_task(entry.value))

    async def is_whole(self, link: NatsLink) -> None:
        """Returns when it has every state that the server has: a watch may be slower than a look at a record."""
        last = (await js_of(link).stream_info(bucket_stream(TASKS))).state.last_seq
        await eventually(lambda: asyncio.sleep(0, self._last >= last))

    def check(self, videos: Path) -> None:
        """Invariants 1 to 3: each task ended once and was not touched again; one video each, the one of its record."""
        for task_id, states in self._seen.items():
            ended = [state for state in states if state.status.is_terminal]
            assert len(ended) == 1, [(state.status, state.epoch, state.worker) for state in states]
            assert states[-1] is ended[0]
            assert (ended[0].status, ended[0].video is not None) == (TaskStatus.DONE, True)
            claims = {(state.epoch, state.owner) for state in states if state.status is TaskStatus.PROCESSING}
            assert len({epoch for epoch, _ in claims}) == len(claims)
            files = [path.name for path in videos.glob(f"{task_id}*")]
            assert ended[0].video is not None
            assert files == [Path(ended[0].video.path).name]


class Scene:
    """A lane that a test can cut off from the server, and a degraded worker that stays connected."""

    def __init__(self, system: System, wire: CutWire, wire_url: str, options: tuple[str, ...], step_s: float) -> None:
        self._step_s = step_s
        self.system, self.wire, self.history = system, wire, History()
        self._wire_url, self._options = wire_url, options
        self._folder = system.gateway.data_dir
        self.lane = self._start_lane()
        address = system.gateway.nats.address
        # it is never at fault, so it keeps its lease, even where it gets no core for some seconds
        settings = json.loads(Path(options[1]).read_text())
        patient = self._folder / "degraded.json"
        patient.write_text(json.dumps(settings | {"windows": settings["windows"] | PACKAGED_LEASE}))
        lasting = ("--settings", str(patient))
        self.degraded = DegradedProcess(address, self._folder, DEGRADED, "cpu-0", *lasting, **shared_forks())

    def _start_lane(self) -> LaneProcess:
        options = (*self._options, "--step-seconds", f"{self._step_s:g}")
        return LaneProcess(self._wire_url, self._folder, *options, model=MODEL, environment=shared_forks())

    async def ready(self) -> None:
        """Returns when the lane is warm and idle, and the gateway knows it. Nothing waits."""
        if not self.lane.is_running:
            self.lane = self._start_lane()

        async def warm() -> bool:
            heartbeat = await heartbeat_of(self.system.link, LANE)
            mine = heartbeat is not None and heartbeat.pid == self.lane.pid and heartbeat.state is LaneState.WARM
            return mine and await self.system.depth(STREAM) == 0

        await eventually(warm, within_s=60)

        async def known() -> bool:
            return bool((await self.system.http.get("/readyz")).json()["models"][MODEL]["warm"])

        await eventually(known)

    async def submit(self, **fields: Any) -> str:
        body = {"model": MODEL, "prompt": "x", "num_frames": 9, "width": 32, "height": 32} | fields
        answer = await self.system.http.post("/generate", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def runs(self, task_id: str) -> GenerationTask:
        """The task, once the lane has finished a step of it."""

        async def look() -> GenerationTask | None:
            task, _ = await self.system.record(task_id)
            return task if task.progress is not None and task.progress.step > 0 else None

        task = await eventually(look, within_s=60)
        assert task is not None
        assert (task.status, task.worker) == (TaskStatus.PROCESSING, LANE)
        return task

    async def done(self, task_id: str) -> GenerationTask:
        async def look() -> GenerationTask | None:
            task, _ = await self.system.record(task_id)
            return task if task.status.is_terminal else None

        task = await eventually(look, within_s=60)
        assert task is not None
        assert task.status is TaskStatus.DONE, task
        return task

    async def serves_again(self) -> None:
        """The lane takes a task as if nothing had happened, and its queue is empty."""
        task = await self.done(await self.submit())
        assert (task.worker, task.route, task.attempt, task.epoch) == (LANE, "lane", 1, 0)
        assert await self.system.depth(STREAM) == 0

    async def lane_logs(self, event: str, task_id: str) -> None:
        async def said() -> bool:
            return any(line.get("task_id") == task_id for line in self.lane.log_lines(event))

        await eventually(said)


@pytest.fixture
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    """Tasks wait for 3 s, unless the test's parameter has other settings."""
    gateway = GatewayProcess(tmp_path)
    gateway.nats.start()
    windows = {
        "wait_limit_s": 3.0,
        "lease_s": 2.0,
        "lease_renew_s": 0.5,
        "heartbeat_s": 0.5,
        "health_timeout_s": 60.0,
        "reconnect_grace_s": 1.0,
    }
    others = dict(getattr(request, "param", {}))
    attempts = others.pop("attempts", 2)
    step_s = others.pop("step_s", 0.4)
    settings = settings_file(tmp_path, **windows | others)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"attempts": attempts}))
    options = ("--settings", str(settings))
    link = await connected(gateway.nats.url)
    await provision(link, wanted(load_settings(settings).catalog("tiny"), keep_s=KEEP_S))
    await asyncio.to_thread(gateway.start, *options, "--keep", f"{KEEP_S:g}s")
    wire = CutWire(gateway.nats.port)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
        scene = Scene(System(gateway, link, http), wire, await wire.start(), options, step_s)
        await scene.history.start(link)
        await leads(link, DEGRADED)
        yield scene
        await scene.history.is_whole(link)
        scene.history.check(gateway.artifacts / "videos")
    scene.lane.kill()
    await asyncio.to_thread(scene.degraded.stop)
    await wire.close()
    await link.close()
    gateway.stop()
    gateway.nats.stop()


Act = Callable[[], None]


async def away_before_it_claims(scene: Scene, leave: Act, come_back: Act) -> None:
    """The lane is away when the task comes, and back when another worker has run it: its claim is dropped."""
    await scene.ready()
    leave()
    task_id = await scene.submit()
    done = await scene.done(task_id)
    assert (done.worker, done.epoch, done.attempt) == (DEGRADED, 1, 1)
    assert [line.event for line in done.timeline][:2] == ["accepted", "reroute"]
    come_back()
    await scene.ready()
    await scene.serves_again()
    assert (await scene.system.record(task_id))[0] == done


async def away_in_mid_run(scene: Scene, leave: Act, come_back: Act) -> None:
    """The lane is away when its lease runs out, and comes back with a video that no longer counts."""
    await scene.ready()
    task_id = await scene.submit()
    await scene.runs(task_id)
    leave()
    done = await scene.done(task_id)
    assert (done.worker, done.attempt) == (DEGRADED, 2)
    assert done.epoch >= 2  # requeued for a lane that still seems warm, then rerouted
    come_back()
    await scene.lane_logs("ownership_lost", task_id)
    await scene.ready()
    await scene.serves_again()
    assert (await scene.system.record(task_id))[0] == done


async def test_lanes_that_fall_silent(scene: Scene) -> None:
    """Lanes that are stopped with SIGSTOP or partitioned, before a claim or after it, and come back too late."""

    def stop() -> None:
        scene.lane.signal(signal.SIGSTOP)

    def resume() -> None:
        scene.lane.signal(signal.SIGCONT)

    host = None
    for fault in (away_before_it_claims, away_in_mid_run):
        for leave, come_back in ((stop, resume), (scene.wire.cut, scene.wire.mend)):
            await fault(scene, leave, come_back)
            (now,) = scene.lane.hosts
            assert host in (None, now)  # the host was never at fault
            host = now


@SEVERAL_WAIT
async def test_kill_9_of_a_lane_with_tasks_waiting(scene: Scene) -> None:
    """The task in hand runs again when its lease has ended, and the others when they have waited long enough."""
    await scene.ready()
    tasks = [await scene.submit()]
    await scene.runs(tasks[0])
    tasks += [await scene.submit() for _ in range(3)]
    (host,) = scene.lane.hosts
    scene.lane.kill()
    ended = [await scene.done(task_id) for task_id in tasks]
    assert {task.worker for task in ended} == {DEGRADED}
    assert [task.attempt for task in ended] == [2, 1, 1, 1]
    assert not is_running(host)
    await scene.ready()
    await scene.serves_again()


@pytest.mark.parametrize("scene", [{"wait_limit_s": 10.0} | PACKAGED_LEASE], indirect=True, ids=["10s"])
async def test_sigterm_of_a_lane_with_tasks_waiting(scene: Scene) -> None:
    """The lane finishes the task in hand, and takes no more. The degraded worker serves the others, and none fails."""
    await scene.ready()
    tasks = [await scene.submit() for _ in range(4)]
    await scene.runs(tasks[0])
    assert await asyncio.to_thread(scene.lane.stop) == 0
    ended = [await scene.done(task_id) for task_id in tasks]
    assert [task.worker for task in ended] == [LANE, DEGRADED, DEGRADED, DEGRADED]
    assert [task.attempt for task in ended] == [1, 1, 1, 1]
    assert await heartbeat_of(scene.system.link, LANE) is None


# A step lasts longer than it takes to stop the lane, even if a slow disk or busy cores delay the server's answers.
@pytest.mark.parametrize(
    "scene",
    [{"wait_limit_s": 10.0, "drain_s": 0.2, "attempts": 1, "step_s": 5.0} | PACKAGED_LEASE],
    indirect=True,
    ids=["one"],
)
async def test_a_lane_that_is_asked_to_stop_hands_its_task_back_at_no_cost(scene: Scene) -> None:
    """ADR 0004: even with only one attempt allowed, the task runs again when the drain was too short for it."""
    await scene.ready()
    task_id = await scene.submit()
    await scene.runs(task_id)
    assert await asyncio.to_thread(scene.lane.stop) == 0
    done = await scene.done(task_id)
    assert (done.worker, done.attempt, done.handed_back) == (DEGRADED, 2, 1)
    timeline = [(line.event, line.detail) for line in done.timeline]
    assert ("handed_back", "the worker is leaving") in timeline
    assert ("requeue", f"{LANE} left in attempt 1") in timeline
