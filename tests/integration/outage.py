"""The server is away for longer than every limit, while tasks run and wait, and clients submit more.

`test_outage.py` runs it with short windows, `make windows` with the packaged ones and 60 s.
"""

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial

from msgspec import Struct

from contracts.lanes import LaneState
from contracts.settings import Windows
from contracts.tasks import TaskStatus
from tests.kit.gateway import System, report_lane
from tests.kit.steered import CONTENT, Worker
from tests.kit.support import eventually


class Returned(Struct, frozen=True):
    """How long after the server's return each task was moved, in seconds."""

    settled_s: float
    ended_s: float
    rerouted_s: float


async def server_away(system: System, windows: Windows, *, away_s: float) -> Returned:
    """Kills the server for *away_s*, and checks all promises for that time and for the time after it."""
    await system.lane_is(LaneState.WARM)
    worker = Worker(system.link, windows, system.gateway.data_dir, "steered")
    try:
        running = (await system.submit())["id"]
        await worker.runner.started.wait()
        await system.lane_is(LaneState.WARM, model="phr00t")
        for_a_lane = (await system.submit("phr00t"))["id"]  # which no lane takes
        await system.lane_is(LaneState.DRAINING)
        degraded = (await system.submit())["id"]
        await system.becomes(running, TaskStatus.PROCESSING, epoch=0)
        ids = (running, for_a_lane, degraded)
        before = {task_id: (await system.http.get(f"/tasks/{task_id}")).json() for task_id in ids}

        await asyncio.to_thread(system.gateway.nats.kill)
        away = asyncio.create_task(asyncio.sleep(away_s))
        await eventually(partial(_is_cut_off, system))
        first = [await _known(system, task_id, before[task_id]["status"]) for task_id in ids]
        await _refused(system)
        worker.runner.may_end.set()  # the result has to wait for the server
        await away
        last = [await _known(system, task_id, before[task_id]["status"]) for task_id in ids]
        assert min(last) > max(first)
        assert not worker.runner.stopped.is_set()
        _said_once(system.gateway.log())
        await asyncio.to_thread(system.gateway.nats.start)

        back = datetime.now(UTC)
        await eventually(partial(_is_connected, system))
        done = await system.becomes(running, TaskStatus.DONE, epoch=0)
        assert (done.attempt, len(worker.runner.ran)) == (1, 1)
        await eventually(partial(_is_done_or_old, system, running))
        assert (await system.http.get(f"/tasks/{running}?wait=20")).json()["status"] == "done"
        video = await system.http.get(f"/tasks/{running}/video")
        assert video.content == CONTENT
        ended = await system.becomes(degraded, TaskStatus.FAILED, epoch=0)
        assert ended.was_refused
        rerouted = await system.becomes(for_a_lane, TaskStatus.PENDING, epoch=1)
        assert rerouted.route == "degraded"
        await _bounds_hold(system, windows)
        moments = (done.finished_at, ended.finished_at, rerouted.queued_at)
        return Returned(*((moment - back).total_seconds() for moment in moments if moment is not None))
    finally:
        await worker.close()


def _said_once(log: str) -> None:
    """An outage floods no log: a watch logs once a minute that it is interrupted, and no process repeats nats-py's
    lines."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    said = Counter((line["event"], line.get("bucket")) for line in lines if line["level"] in ("warning", "error"))
    assert said["nats_disconnected", None] == 1
    assert (
        max(
            count
            for (event, _), count in said.items()
            if event in ("nats_error", "watch_interrupted", "nats_disconnected")
        )
        == 1
    )


async def _is_cut_off(system: System) -> bool:
    return (await system.http.get("/readyz")).json()["nats"] is False


async def _is_connected(system: System) -> bool:
    return system.link.connection.is_connected


async def _is_done_or_old(system: System, task_id: str) -> bool:
    """Whether the task is done, or the answer says how old it is. A gateway that follows the records again may still
    wait for this change; one that does not follow them reports the age of its answer."""
    answer = await system.http.get(f"/tasks/{task_id}")
    return answer.json()["status"] == "done" or "age" in answer.headers


async def _refused(system: System) -> None:
    """The gateway refuses a submission in time, and the refusal says when to try again."""
    refused = await system.post()
    body = refused.json()
    assert (refused.status_code, body["code"], body["outcome"]) == (503, "transport_unavailable", "unknown")
    assert int(refused.headers["retry-after"]) >= 1


async def _known(system: System, task_id: str, status: str) -> int:
    """The gateway answers about a task from memory, with or without a wait. Returns the answers' greatest age in
    seconds."""
    polled = await system.http.get(f"/tasks/{task_id}")
    assert (polled.status_code, polled.json()["status"]) == (200, status)
    waited = await system.http.get(f"/tasks/{task_id}?wait=0.2")
    assert waited.json() == polled.json()
    listed = await system.http.get("/tasks")
    assert task_id in [task["id"] for task in listed.json()["tasks"]]
    ages_s = [int(answer.headers["age"]) for answer in (polled, waited, listed)]
    assert ages_s == sorted(ages_s)
    return ages_s[0]


async def _bounds_hold(system: System, windows: Windows) -> None:
    """The gateway accepts new requests, which end in time, and no answer is old any more."""

    async def accepted() -> str | None:
        answer = await system.post(prefer="respond-async")
        return answer.json()["id"] if answer.status_code == 202 else None

    await report_lane(system.link, "anisora", LaneState.DRAINING)
    task_id = await eventually(accepted)
    assert task_id is not None

    async def is_fresh() -> bool:
        return "age" not in (await system.http.get(f"/tasks/{task_id}")).headers

    await eventually(is_fresh)
    refused = await system.becomes(task_id, TaskStatus.FAILED, epoch=0, within_s=windows.wait_limit_s + 20)
    assert refused.finished_at is not None
    assert refused.was_refused
    assert refused.finished_at - refused.queued_at <= timedelta(seconds=windows.wait_limit_s)
