"""How `admin` can damage the system, as the runbook's table says: verb by verb, by the real NATS CLI, on a gateway
with workers that go on meanwhile. Some things recover by themselves; for the rest, the state is as the table says.

A row of the table without a test here fails, and so does a bucket or a queue that no row names.
"""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import pytest

from contracts.lanes import LaneState, SlotState
from contracts.settings import Catalog, load_settings
from contracts.tasks import GenerationTask, TaskStatus
from contracts.topology import (
    COLD_STARTS,
    CONTROL,
    DEGRADED,
    FALLBACKS,
    KEYS,
    LANES,
    LEADER,
    LEADER_KEY,
    SLOTS,
    TASKS,
    WORK_CONSUMER,
    Topology,
    bucket_stream,
    control_key,
    lane_key,
    lane_stream,
)
from lane_worker.runtime.heartbeat import Heartbeat
from lane_worker.runtime.slot_display import SlotDisplay
from ops.ending import end
from ops.nats.access import NatsAccess, Role
from ops.nats.leader import Leader
from ops.nats.link import NatsLink
from ops.nats.provisioning import differences, provision, wanted
from tests.kit.behind import js_of
from tests.kit.gateway import System, fresh_system
from tests.kit.runbook import RUNBOOK, in_shell
from tests.kit.steered import Worker
from tests.kit.support import KEEP_S, eventually, settings_file
from tests.kit.tools import tool

pytestmark = pytest.mark.tools

ROOT: Final = Path(__file__).parents[2]
LANE: Final = lane_stream("anisora")
# How long a task waits where it has to leave its queue. Elsewhere none may, however busy the machine is.
WAIT_S: Final = 3.0
Route = Literal["lane", "degraded"]


class Scene:
    """A gateway, with a lane and a degraded worker that a test can start, each with the rights of its role."""

    def __init__(self, system: System, catalog: Catalog, folder: Path) -> None:
        self.system, self.catalog, self.folder = system, catalog, folder
        self.leave = AsyncExitStack()

    @property
    def want(self) -> Topology:
        return wanted(self.catalog, keep_s=KEEP_S)

    async def admin(self, command: str) -> str:
        """Types a `nats` command as the runbook has it, and `y` where it asks; returns what it prints. It asks only on
        a terminal, and about the streams of buckets even with `--force`."""
        typed = f"PYTHONPATH={ROOT} {sys.executable} -m tests.kit.terminal nats --context $ADMIN {command}"
        shell = await in_shell(typed, self.system.gateway.nats, self.folder)
        output, _ = await asyncio.wait_for(shell.communicate(), 60)
        assert shell.returncode == 0, f"{command}\n{output.decode()}"
        return output.decode()

    async def link(self, role: Role) -> NatsLink:
        access = NatsAccess(urls=self.system.gateway.nats.address, user=role, password=f"pw-{role}")
        link = await NatsLink.connect(access, name=role)
        self.leave.push_async_callback(link.close)
        return link

    async def worker(self, route: Route) -> Worker:
        """A worker that ends each task at once."""
        stream = LANE if route == "lane" else DEGRADED
        worker = Worker(
            await self.link(route), self.catalog.windows, self.system.gateway.data_dir, route, stream=stream
        )
        worker.runner.may_end.set()
        self.leave.push_async_callback(worker.close)
        return worker

    async def submit(self, route: Route = "lane") -> str:
        await self.system.lane_is(LaneState.WARM if route == "lane" else LaneState.DRAINING)
        task = await self.system.submit()
        assert task["route"] == route
        return str(task["id"])

    async def ends(self, task_id: str, status: TaskStatus = TaskStatus.DONE, *, epoch: int = 0) -> GenerationTask:
        return await self.system.becomes(task_id, status, epoch=epoch)

    async def answer(self, task_id: str) -> int:
        return (await self.system.http.get(f"/tasks/{task_id}")).status_code

    async def answers(self, task_id: str, status: int) -> None:
        async def look() -> bool:
            return await self.answer(task_id) == status

        await eventually(look)

    async def value(self, bucket: str, key: str) -> bytes | None:
        entry = await self.system.link.entries.get(bucket, key)
        return None if entry is None else entry.value

    async def stands_again(self, bucket: str, key: str, *, not_: bytes = b"") -> None:
        async def look() -> bool:
            return await self.value(bucket, key) not in (None, not_)

        await eventually(look)

    def running(self, *tasks: Awaitable[object]) -> None:
        for each in tasks:
            self.leave.push_async_callback(end, asyncio.ensure_future(each))


@pytest.fixture
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    tool("nats")
    row: str = request.node.callspec.params["row"] if hasattr(request.node, "callspec") else ""
    windows = {"wait_limit_s": WAIT_S, "degraded_margin_s": 0.5} if ROWS.get(row) in OUTWAITED else {}
    settings = settings_file(tmp_path, **windows)
    async with fresh_system(tmp_path, settings) as system:
        scene = Scene(system, load_settings(settings).catalog("tiny"), tmp_path)
        async with scene.leave:
            yield scene


# ── the rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def rm_of_a_queues_consumer(scene: Scene) -> None:
    for route in ("lane", "degraded"):
        await scene.worker(route)
        await scene.admin(f"consumer rm {LANE if route == 'lane' else DEGRADED} {WORK_CONSUMER} --force")
        await scene.ends(await scene.submit(route))

    async def is_whole() -> bool:
        return await differences(scene.system.link, scene.want) == []

    await eventually(is_whole)


async def rm_of_a_watchs_consumer(scene: Scene) -> None:
    """Every bucket that the gateway follows loses its consumers, and the gateway still sees what is written afterwards.
    `tests/e2e/test_up.py` does this to the consumers of all processes."""
    await scene.worker("lane")
    for bucket in scene.want.buckets:
        stream = bucket_stream(bucket.name)
        for consumer in await js_of(scene.system.link).consumers_info(stream):
            await scene.admin(f"consumer rm {stream} {consumer.name} --force")
    await scene.ends(await scene.submit())
    await scene.ends(await scene.submit("lane"))


async def next_of_a_queue(scene: Scene) -> None:
    kept = await scene.submit()
    shown = await scene.admin(f"consumer next {LANE} {WORK_CONSUMER} --no-ack --raw")
    assert kept in shown
    taken = await scene.submit()  # only now: no worker takes it, so it leaves the lane's queue after `WAIT_S`
    shown = await scene.admin(f"consumer next {LANE} {WORK_CONSUMER} --raw --ack")
    assert taken in shown
    await scene.worker("degraded")
    await scene.worker("lane")
    moved = await scene.ends(taken, epoch=1)
    assert (moved.route, moved.attempt) == ("degraded", 1)
    await scene.ends(kept, epoch=(await scene.system.record(kept))[0].epoch)


async def purge_of_a_queue(scene: Scene) -> None:
    on_a_lane, on_degraded = await scene.submit(), await scene.submit("degraded")
    for stream in (LANE, DEGRADED):
        await scene.admin(f"stream purge {stream} --force")
    ended = await scene.ends(on_degraded, TaskStatus.FAILED)
    assert ended.was_refused
    await scene.worker("degraded")
    moved = await scene.ends(on_a_lane, epoch=1)
    assert moved.route == "degraded"


async def keys_of_workers(scene: Scene) -> None:
    now = datetime.now(UTC)
    lane, degraded = await scene.link("lane"), await scene.link("degraded")
    heartbeat = Heartbeat(
        lane, model="anisora", worker="a-0", slot="cpu-0", interval_s=0.5, health_age_s=lambda: 0.0, started_at=now
    )
    heartbeat.set(LaneState.WARM)
    leader = Leader(degraded, worker="d-0", owner="o", slot="cpu-1")
    await leader.campaign()
    display = SlotDisplay(degraded, slot="cpu-1", worker="d-0")
    await display.start()
    display.show(SlotState.RESIDENT, "phr00t")
    scene.running(heartbeat.run(), leader.hold(), display.run())
    await display.settled()
    await heartbeat.published()
    for bucket, key in ((LANES, lane_key("anisora", "a-0")), (SLOTS, "cpu-1")):
        for verb in ("kv del {} {} --force", "kv purge {} {} --force", "kv put {} {} poison"):
            await scene.admin(verb.format(bucket, key))
            await scene.stands_again(bucket, key, not_=b"poison")
    # the leader's key is a claim: its removal ends the leadership, and a candidate takes it again
    for verb in ("kv del", "kv purge"):
        await scene.admin(f"{verb} {LEADER} {LEADER_KEY} --force")
        await leader.campaign()
        assert await scene.value(LEADER, LEADER_KEY) is not None
        scene.running(leader.hold())


async def keys_of_control(scene: Scene) -> None:
    async def mode(wanted: str) -> None:
        async def look() -> bool:
            answer = await scene.system.http.get("/admin/lanes/anisora/mode")
            return bool(answer.json()["mode"] == wanted)

        await eventually(look)

    for verb in ("kv del", "kv purge"):
        await scene.admin(f"kv put {CONTROL} {control_key('anisora')} degraded")
        await mode("degraded")
        await scene.admin(f"{verb} {CONTROL} {control_key('anisora')} --force")
        await mode("auto")


async def keys_of_figures(scene: Scene) -> None:
    """Gateways only show these keys, and nothing depends on them: the next entry is written as usual."""
    await scene.submit("degraded")
    await scene.stands_again(FALLBACKS, "anisora")
    for verb in ("kv del {} {} --force", "kv purge {} {} --force", "kv put {} {} poison"):
        for bucket in (FALLBACKS, COLD_STARTS):
            await scene.admin(verb.format(bucket, "anisora"))
        await scene.submit("degraded")
        await scene.stands_again(FALLBACKS, "anisora", not_=b"poison")
    assert (await scene.system.http.get("/admin/lanes")).status_code == 200


async def keys_of_tasks(scene: Scene) -> None:
    for verb in ("kv del", "kv purge"):
        task_id = await scene.submit()
        await scene.admin(f"{verb} {TASKS} {task_id} --force")
        await scene.answers(task_id, 404)
        worker = await scene.worker("lane")

        async def is_dropped() -> bool:
            return (await scene.system.depth(LANE)) == 0

        await eventually(is_dropped)
        assert worker.runner.ran == []
        await worker.close()


async def purge_of_the_records(scene: Scene) -> None:
    ended = await scene.submit("degraded")
    await scene.system.http.delete(f"/tasks/{ended}")
    served, lost = await scene.submit(), await scene.submit("degraded")
    await scene.admin(f"stream purge {bucket_stream(TASKS)} --force")
    await scene.answers(ended, 404)
    await scene.worker("lane")
    await scene.ends(served)
    # no worker takes it: its message expires after 30 s, and nothing of the task is left
    await scene.answers(lost, 404)


async def purge_of_another_bucket(scene: Scene) -> None:
    now = datetime.now(UTC)
    lane = await scene.link("lane")
    heartbeat = Heartbeat(
        lane, model="anisora", worker="a-0", slot="cpu-0", interval_s=0.5, health_age_s=lambda: 0.0, started_at=now
    )
    heartbeat.set(LaneState.WARM)
    scene.running(heartbeat.run())
    await scene.system.lane_is(LaneState.WARM, model="phr00t")  # no process writes this one: it does not come back
    await scene.admin(f"kv put {CONTROL} {control_key('anisora')} degraded")
    for bucket in (LANES, CONTROL, SLOTS, LEADER, FALLBACKS, COLD_STARTS):
        await scene.admin(f"stream purge {bucket_stream(bucket)} --force")

    async def is_read_again() -> bool:
        ready = (await scene.system.http.get("/readyz")).json()["models"]
        mode = (await scene.system.http.get("/admin/lanes/anisora/mode")).json()["mode"]
        return (ready["anisora"]["lanes"], ready["phr00t"]["lanes"], mode) == (["warm"], [], "auto")

    await eventually(is_read_again)


async def rm_of_a_stream(scene: Scene) -> None:
    await scene.submit()
    for stream in (LANE, bucket_stream(TASKS), bucket_stream(LANES)):
        await scene.admin(f"stream rm {stream} --force")
    await provision(scene.system.link, scene.want)
    await scene.worker("lane")

    async def serves() -> bool:
        answer = await scene.system.post(prefer="respond-async")
        return answer.status_code == 202

    await eventually(serves)
    await scene.ends(await scene.submit())


async def keys_of_callers(scene: Scene) -> None:
    """In `tests/integration/test_access.py` gateways then let no client in any more."""
    await scene.system.link.entries.put(KEYS, "k", b"{}")
    await scene.admin(f"kv del {KEYS} k --force")
    assert await scene.value(KEYS, "k") is None


async def traced(scene: Scene) -> None:
    before = await scene.system.depth()
    await scene.admin("trace degraded.anisora.nobody")
    assert await scene.system.depth() == before


ROWS: Final[dict[str, Callable[[Scene], Awaitable[None]]]] = {
    "`consumer rm` of `LANE_*`, `DEGRADED` (`worker`)": rm_of_a_queues_consumer,
    "`consumer rm` of `KV_*`": rm_of_a_watchs_consumer,
    "`consumer next` of a queue": next_of_a_queue,
    "`stream purge` of `LANE_*`, `DEGRADED`": purge_of_a_queue,
    "`kv put`, `kv del`, `kv purge` of `lanes`, `leader`, `slots`": keys_of_workers,
    "`kv del`, `kv purge` of `control`": keys_of_control,
    "`kv put`, `kv del`, `kv purge` of `fallbacks`, `cold_starts`": keys_of_figures,
    "`kv del`, `kv purge` of `keys`": keys_of_callers,
    "`kv del`, `kv purge` of `tasks`": keys_of_tasks,
    "`stream purge KV_tasks`": purge_of_the_records,
    "`stream purge` of another `KV_*`": purge_of_another_bucket,
    "`stream rm`": rm_of_a_stream,
    "`trace`": traced,
}


# The rows in which a wait has to end.
OUTWAITED: Final = (next_of_a_queue, purge_of_a_queue)


def rows() -> list[str]:
    """The first column of the table."""
    section = RUNBOOK.read_text().split("### How `admin` can damage the system")[1].split("\n## ")[0]
    return re.findall(r"^\| (.+?) \|", section, re.MULTILINE)[1:]


@pytest.mark.parametrize("row", rows())
async def test_row(row: str, scene: Scene) -> None:
    await ROWS[row](scene)


def test_every_row_has_its_test() -> None:
    assert rows() == list(ROWS)


async def test_what_operator_can_put_among_the_records_is_no_record(scene: Scene) -> None:
    """The one gap that the operator's rights leave (ADR 0033): it can have entries of another bucket delivered to the
    subject of the record of the task in hand, to which the worker listens. They keep their own name there."""
    worker = await scene.worker("lane")
    worker.runner.may_end.clear()
    task_id = await scene.submit()
    await worker.runner.started.wait()
    await scene.admin(f"kv put {CONTROL} lanes.elsewhere auto")
    passage = {"name": "passage", "deliver_subject": f"$KV.{TASKS}.{task_id}", "filter_subject": f"$KV.{CONTROL}.>"}
    passage |= {"deliver_policy": "last_per_subject", "ack_policy": "none", "replay_policy": "instant"}
    (scene.folder / "passage.json").write_text(json.dumps(passage | {"mem_storage": True, "num_replicas": 1}))
    typed = f"nats consumer add {bucket_stream(CONTROL)} passage --config passage.json"
    shell = await in_shell(typed, scene.system.gateway.nats, scene.folder)
    assert await shell.wait() == 0

    async def has_come() -> bool:
        info = await js_of(scene.system.link).stream_info(bucket_stream(TASKS), subjects_filter=f"$KV.{CONTROL}.>")
        return bool(info.state.subjects)

    await eventually(has_come)
    assert [task["id"] for task in (await scene.system.http.get("/tasks")).json()["tasks"]] == [task_id]
    worker.runner.may_end.set()
    assert (await scene.ends(task_id)).attempt == 1
