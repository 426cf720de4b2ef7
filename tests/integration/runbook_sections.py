"""What an operator does in each section of the runbook, and the result that it has to have."""

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import pytest

from contracts import lifecycle
from contracts.lanes import ColdStart, LaneState, Leadership, SlotState, decode_episode
from contracts.settings import load_settings
from contracts.tasks import FailureCode, TaskStatus, decode_task, encode_task
from contracts.topology import COLD_STARTS, CONTROL, DEGRADED, FALLBACKS, LANES, LEADER, LEADER_KEY, RETIRED, TASKS
from lane_worker.runtime.heartbeat import Heartbeat
from lane_worker.runtime.slot_display import SlotDisplay
from ops.ending import end
from ops.nats.access import NatsAccess
from ops.nats.errors import UnusableServer
from ops.nats.link import NatsLink
from ops.nats.provisioning import differences, wanted
from tests.kit.behind import js_of
from tests.kit.runbook import LANE, Page, Stage, json_in, number, rows, subjects, values
from tests.kit.samples import data_uri, picture
from tests.kit.support import KEEP_S, NatsServer, eventually

# ── the sections ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def the_context(stage: Stage, page: Page) -> None:
    want = wanted(load_settings().catalog("tiny"), keep_s=KEEP_S)
    purposes = {row[0]: row[1] for row in rows(await page.run("nats stream ls --all")) if row[0]}
    assert set(purposes) == set(want.names)
    assert all(purposes.values()), "each with what it is for"
    assert re.search(r"User: operator\n", await page.run("nats account info"))


async def what_is_waiting(stage: Stage, page: Page) -> None:
    ids = [await stage.submit(), await stage.submit()]
    await stage.queued("degraded", "waits")
    assert re.search(rf"{DEGRADED}\W+1 of 25\b", await page.run("warmlane status"))
    assert number("Messages", await page.run("nats stream info DEGRADED")) == 1
    state = await page.run("nats stream info LANE_ANISORA")
    assert number("Messages", state) == 2
    assert subjects(await page.run("nats stream subjects DEGRADED")) == {"degraded.anisora.waits": 1}
    waiting = subjects(await page.run("nats stream subjects LANE_ANISORA"))
    assert waiting == {f"lane.anisora.{task_id}": 1 for task_id in ids}
    shown = await page.run("nats stream get LANE_ANISORA", SEQ=number("First Sequence", state))
    assert f"on Subject lane.anisora.{ids[0]}" in shown
    assert decode_task(json_in(shown)).id == ids[0]
    info = await page.run("nats consumer info LANE_ANISORA worker")
    assert (number("Unprocessed Messages", info), number("Outstanding Acks", info)) == (2, 0)
    assert number("Waiting Pulls", info) == 0
    assert "Where the lanes of anisora take the next task." in info
    assert number("Unprocessed Messages", await page.run("nats consumer info DEGRADED worker")) == 1


async def the_server_itself(stage: Stage, page: Page) -> None:
    """The listener also hears of users whom the server rejects."""
    assert re.search(r"^warmlane +rtt=", await page.run("nats server ping"), re.MULTILINE)
    assert rows(await page.run("nats server list"))[0][0] == "warmlane"
    summary = rows(await page.run("nats server report jetstream"))[0]
    assert (summary[0], int(summary[2])) == (
        "warmlane",
        len(wanted(load_settings().catalog("tiny"), keep_s=KEEP_S).names),
    )
    assert "gateway" in await page.run("nats server report connections")
    slow = (await page.run("nats server request connections")).splitlines()
    assert any(re.match(r"\d+ \S+ gateway", line) for line in slow), slow
    events = await page.watch("nats events")
    await events.says("CLIENT.AUTH")
    intruder = NatsAccess(urls=stage.gateway.nats.address, user="nobody", password="x")

    async def hear() -> None:
        await events.says("nobody")

    hearing = asyncio.create_task(hear())
    stage.leave.push_async_callback(end, hearing)

    async def tried() -> bool:  # repeatedly: the listener may have begun only after the first attempt
        with pytest.raises(UnusableServer):
            await NatsLink.connect(intruder, name="intruder")
        return hearing.done()

    await eventually(tried)
    await hearing
    top = await page.watch("nats top warmlane", terminal=True)
    await top.draws("Slow", "Connections")


async def who_is_warm(stage: Stage, page: Page) -> None:
    now = datetime.now(UTC)
    await stage.put(LEADER, LEADER_KEY, Leadership(worker="degraded-0", owner="o", slot="cpu-2", pid=1, since=now))
    await stage.link.entries.put(CONTROL, "lanes.anisora", b"degraded")
    await stage.routes("degraded")

    async def falls_back() -> bool:
        entry = await stage.link.entries.get(FALLBACKS, "anisora")
        return entry is not None and decode_episode(entry.value or b"").until is None

    await eventually(falls_back)
    for seconds in (4.0, 5.0):
        start = ColdStart(model="anisora", worker="anisora-0", started_at=now, ended_at=now, seconds=seconds)
        await stage.put(COLD_STARTS, "anisora", start)
    shown = SlotDisplay(await stage.as_role("degraded"), slot="cpu-2", worker="degraded-0")
    running = asyncio.create_task(shown.run())
    stage.leave.push_async_callback(end, running)
    shown.show(SlotState.RESIDENT, "phr00t")
    await shown.settled()

    lanes = {row[0]: row[-1] for row in rows(await page.run("nats kv ls lanes"))}
    assert '"state":"warm"' in lanes["anisora.anisora-0"]
    assert {"state", "detail", "health_age_s", "slot", "pid", "in_hand"} <= set(
        json.loads(await page.run("nats kv get lanes anisora.anisora-0"))
    )
    watch = await page.watch("nats kv watch lanes")
    for _ in lanes:
        await watch.says("PUT lanes > ")
    assert json.loads(await page.run("nats kv get leader degraded"))["worker"] == "degraded-0"
    slots = {row[0]: row[-1] for row in rows(await page.run("nats kv ls slots"))}
    assert '"model":"phr00t"' in slots["cpu-2"]
    switch = json.loads(await page.run("nats kv get fallbacks anisora"))
    assert (switch["cause"], switch["until"]) == ("manual", None)
    starts = rows(await page.run("nats kv history cold_starts anisora"))
    assert [row[2] for row in starts[-2:]] == ["PUT", "PUT"]


async def a_tasks_timeline(stage: Stage, page: Page) -> None:
    task_id = await stage.submit()
    await stage.http.delete(f"/tasks/{task_id}")
    status, error, timeline = values(await page.run("nats kv get tasks", ID=task_id))
    assert (status, error["code"]) == ("failed", "cancelled")
    assert [event["event"] for event in timeline] == ["accepted", "fail"]
    moves = rows(await page.run("nats kv history tasks", ID=task_id))
    assert len(moves) == 2
    before = json.loads(await page.run("nats kv get tasks", ID=task_id, REVISION=moves[0][1]))
    assert before["status"] == "pending"
    waits = await stage.submit()
    shown = await page.run("nats stream get LANE_ANISORA --last-for", ID=waits)
    assert decode_task(json_in(shown)).id == waits
    deadline_at, lease_end = values(await page.run("nats kv get tasks", ID=waits))
    assert (datetime.fromisoformat(deadline_at) > datetime.now(UTC), lease_end) == (True, None)
    assert json.loads(await page.run("curl", ID=task_id))["decision"]["outcome"] == "lane"


async def force_and_lift(stage: Stage, page: Page) -> None:
    await stage.routes("lane")
    await page.run("warmlane lane-mode anisora degraded")
    assert await stage.route() == "degraded"
    await stage.link.entries.put(CONTROL, "lanes.anisora", b"auto")
    await stage.routes("lane")
    await page.run("nats kv put control lanes.anisora degraded")
    await stage.routes("degraded")
    assert (await page.run("nats kv get control lanes.anisora")).strip() == "degraded"
    await page.run("warmlane lane-mode anisora auto")
    assert await stage.route() == "lane"
    await stage.link.entries.put(CONTROL, "lanes.anisora", b"degraded")
    await stage.routes("degraded")
    await page.run("nats kv put control lanes.anisora auto")
    await stage.routes("lane")


async def pause(stage: Stage, page: Page) -> None:
    """A worker that asked before the pause gets nothing either, and the server still counts as provisioned."""
    lane = await stage.as_role("lane")
    early, late = [await lane.messages.pull(LANE, "worker") for _ in range(2)]
    await page.run("nats kv put control lanes.anisora degraded")
    await stage.routes("degraded")
    asking = asyncio.create_task(early.fetch())

    async def asks() -> bool:
        return bool((await js_of(stage.link).consumer_info(LANE, "worker")).num_waiting)

    await eventually(asks)
    await page.run("nats consumer pause")
    await stage.queued("lane", "paused")
    assert [*await asking, *await late.fetch()] == []
    info = await page.run("nats consumer info LANE_ANISORA worker")
    assert "Paused Until" in info
    assert number("Unprocessed Messages", info) == 1
    assert await differences(stage.link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S)) == []
    await page.run("nats consumer resume")
    (message,) = await late.fetch()
    assert message.subject == "lane.anisora.paused"
    await message.ack()
    await page.run("nats kv put control lanes.anisora auto")
    await stage.routes("lane")


async def drain(stage: Stage, page: Page) -> None:
    """What an operator sees of a lane that leaves. In `tests/integration/test_lane_worker.py` real lanes leave."""
    heartbeat = Heartbeat(
        await stage.as_role("lane"),
        model="anisora",
        worker="anisora-0",
        slot="cpu-0",
        interval_s=60,
        health_age_s=lambda: 0.0,
        started_at=datetime.now(UTC),
    )
    running = asyncio.create_task(heartbeat.run())
    stage.leave.push_async_callback(end, running)
    heartbeat.set(LaneState.DRAINING)
    await heartbeat.published()
    assert values(await page.run("nats kv get lanes anisora.anisora-0")) == ["draining", os.getpid()]
    watch = await page.watch("nats kv watch lanes anisora.anisora-0")
    await watch.says("anisora.anisora-0", '"state":"draining"')
    await end(running)
    await heartbeat.leave()
    await watch.says("DEL", "anisora.anisora-0")
    await leads(stage, "degraded-1")
    assert values(await page.run("nats kv get leader degraded")) == ["degraded-1"]


async def a_poisoned_message(stage: Stage, page: Page) -> None:
    poison = await stage.link.messages.publish(f"lane.anisora.{'poison'}", b"\0\xff")
    await stage.queued("lane", "good")
    assert "lane.anisora.poison" in await page.run("nats stream subjects LANE_ANISORA")
    shown = await page.run("nats stream get LANE_ANISORA --last-for lane.anisora.poison")
    assert f"LANE_ANISORA#{poison.seq} " in shown
    await page.run("nats stream rmm", SEQ=poison.seq)
    pull = await (await stage.as_role("lane")).messages.pull(LANE, "worker")
    (message,) = await pull.fetch()
    assert message.subject == "lane.anisora.good"
    await message.ack()

    task_id = await stage.submit()
    before = await stage.link.entries.get(TASKS, task_id)
    assert before is not None
    await stage.link.entries.put(TASKS, task_id, b"\0\xff")
    assert (await stage.http.delete(f"/tasks/{task_id}")).status_code == 404  # no process can read its record
    moves = rows(await page.run("nats kv history tasks", ID=task_id))
    assert [row[4] for row in moves][1:] == ["2"]  # bytes
    assert values(await page.run("nats kv get tasks", ID=task_id, REVISION=moves[0][1])) == ["pending"]
    await page.run("nats kv revert tasks", ID=task_id, REVISION=moves[0][1])
    assert await stage.record(task_id) == decode_task(before.value or b"")
    assert json.loads(await page.run("curl", ID=task_id))["error"]["code"] == "cancelled"

    await stage.link.entries.put(LANES, "anisora.poison", b"\0\xff")
    await page.run("nats kv del lanes anisora.poison")
    entry = await stage.link.entries.get(LANES, "anisora.poison")
    assert entry is not None
    assert entry.value is None
    await js_of(stage.link).purge_stream(f"KV_{LANES}", subject=f"$KV.{LANES}.anisora.poison")


async def requeue(stage: Stage, page: Page) -> None:
    task_id = await stage.submit(prompt="a red fox", seed=7, num_frames=33)
    await stage.http.delete(f"/tasks/{task_id}")
    error, parameters = values(await page.run("nats kv get tasks", ID=task_id))
    assert (error["code"], parameters["seed"]) == ("cancelled", 7)
    printed = await page.run("warmlane resubmit", ID=task_id)
    again = await stage.record(printed.split()[0])
    assert again.id != task_id
    assert (again.status, again.parameters) == (TaskStatus.PENDING, (await stage.record(task_id)).parameters)
    assert (await stage.record(task_id)).status is TaskStatus.FAILED
    content = picture("PNG")
    (stage.folder / "boat.png").write_bytes(content)
    with_image = await stage.submit(image=data_uri(content))
    await stage.http.delete(f"/tasks/{with_image}")
    printed = await page.run("warmlane resubmit", ID=with_image)
    assert (await stage.record(printed.split()[0])).parameters == (await stage.record(with_image)).parameters


async def lift_a_quarantine(stage: Stage, page: Page) -> None:
    shown = SlotDisplay(await stage.as_role("degraded"), slot="cpu-2", worker="degraded-0")
    await shown.start()
    running = asyncio.create_task(shown.run())
    stage.leave.push_async_callback(end, running)

    async def quarantine() -> None:
        shown.take()
        shown.show(SlotState.QUARANTINED, None, "3 GiB are still held")
        await shown.settled()

    await quarantine()
    assert "quarantined" in await page.run("warmlane slots")
    assert values(await page.run("nats kv get slots cpu-2")) == ["quarantined", "3 GiB are still held"]
    await page.run("warmlane slots lift cpu-2")
    await asyncio.wait_for(shown.usable(), 20)
    await quarantine()
    assert await shown.look() is not None
    await page.run("nats kv del slots cpu-2")
    await asyncio.wait_for(shown.usable(), 20)


async def back_up_and_restore(stage: Stage, page: Page) -> None:
    task_id = await stage.submit()
    await stage.link.entries.put(CONTROL, "lanes.phr00t", b"auto")
    (stage.folder / "empty").mkdir()
    empty = NatsServer(stage.folder / "empty")
    empty.start()
    stage.leave.callback(empty.stop)
    await page.run("warmlane backup")
    await page.run("warmlane restore", on=empty)
    restored = await stage.as_role("admin", empty)
    entry = await restored.entries.get(TASKS, task_id)
    assert entry is not None
    assert decode_task(entry.value or b"").id == task_id

    for stream in ("KV_control", "KV_slots"):
        await js_of(restored).delete_stream(stream)
    await page.run("nats backup stream KV_control")
    await page.run("nats backup restore stream backups/control", on=empty)
    entry = await restored.entries.get(CONTROL, "lanes.phr00t")
    assert entry is not None
    assert entry.value == b"auto"
    await page.run("nats backup restore stream backups/monday/KV_slots", on=empty)
    assert (await js_of(restored).stream_info("KV_slots")).config.name == "KV_slots"


async def upgrade(stage: Stage, page: Page) -> None:
    watch = await page.watch("nats kv watch lanes")
    for _ in range(2):
        await watch.says('"state":"warm"')
    await leads(stage, "degraded-2")
    assert json.loads(await page.run("nats kv get leader degraded"))["worker"] == "degraded-2"
    assert {row[0] for row in rows(await page.run("nats stream ls --all"))}.isdisjoint(RETIRED)


async def roll_back(stage: Stage, page: Page) -> None:
    before = (await js_of(stage.link).stream_info("KV_tasks")).state.messages
    assert number("Messages", await page.run("nats stream info KV_tasks")) == before


async def leads(stage: Stage, worker: str) -> None:
    now = datetime.now(UTC)
    await stage.put(LEADER, LEADER_KEY, Leadership(worker=worker, owner="o", slot="cpu-2", pid=1, since=now))


async def a_queue_that_does_not_work(stage: Stage, page: Page) -> None:
    assert (await stage.http.get("/readyz")).json()["troubles"] == []
    streams = {row[0] for row in rows(await page.run("nats stream ls --all"))}
    assert {"DEGRADED", "LANE_ANISORA", "KV_tasks"} <= streams


async def a_worker_that_fails(stage: Stage, page: Page) -> None:
    assert values(await page.run("nats kv get lanes anisora.anisora-0")) == [""]  # nothing failed yet
    task_id = await stage.submit()
    task, entry = await stage.record(task_id), await stage.link.entries.get(TASKS, task_id)
    now = datetime.now(UTC)
    claimed = lifecycle.claim(task, owner="o", worker="anisora-0", lease_s=20, now=now)
    failed = lifecycle.fail(claimed, code=FailureCode.INFERENCE_FAILED, message="x", now=now)
    assert entry is not None
    await stage.link.entries.update(TASKS, task_id, encode_task(failed), revision=entry.revision)
    error, worker = values(await page.run("nats kv get tasks", ID=task_id))
    assert (error["code"], worker) == ("inference_failed", "anisora-0")


async def webhooks_that_are_late(stage: Stage, page: Page) -> None:
    """A receiver that does not exist, and a delivery to it about a cancelled task."""
    task_id = await stage.submit(webhook={"url": "https://receiver.invalid/hook"})
    await stage.http.delete(f"/tasks/{task_id}")

    async def tried() -> bool:
        deliveries = (await stage.http.get("/webhooks/deliveries")).json()["deliveries"]
        return any(each["task_id"] == task_id and each["attempts"] for each in deliveries)

    await eventually(tried)
    pending = await page.run("warmlane webhooks deliveries --status pending")
    assert re.search(r" pending +\S+  [1-9]\d* attempt", pending)
    worker, since = values(await page.run("nats kv get leader webhooks"))
    assert worker.startswith("gateway at ")
    assert datetime.fromisoformat(since) <= datetime.now(UTC)
    assert json.loads(await page.run("curl -s http://127.0.0.1:8000/readyz"))["troubles"] == []
    await page.run("warmlane webhooks deliveries --status dead")
    assert "no delivery is dead" in await page.run("warmlane webhooks redeliver --dead")


SECTIONS: Final[dict[str, Callable[[Stage, Page], Awaitable[None]]]] = {
    "Runbook": the_context,
    "What is waiting": what_is_waiting,
    "The nats-server itself": the_server_itself,
    "Who is warm": who_is_warm,
    "A task's timeline": a_tasks_timeline,
    "Force and lift the fallback": force_and_lift,
    "Pause": pause,
    "Drain": drain,
    "A poisoned message": a_poisoned_message,
    "A queue that does not work": a_queue_that_does_not_work,
    "A worker that fails every task": a_worker_that_fails,
    "Requeue a failed task": requeue,
    "Lift a quarantine": lift_a_quarantine,
    "Webhooks that are late": webhooks_that_are_late,
    "Back up and restore": back_up_and_restore,
    "Upgrade": upgrade,
    "Roll back": roll_back,
}
