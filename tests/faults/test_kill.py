"""Processes that really die, and what becomes of their tasks."""

import os
import signal
from typing import Any

from tests.support import eventually_sync, is_running
from tests.system import UpProcess


def running(up: UpProcess, task_id: str, *, attempt: int = 1) -> dict[str, Any]:
    """The task, once some step of *attempt* is finished."""

    def look() -> dict[str, Any] | None:
        task = up.task(task_id)
        assert task["status"] != "done", "too fast to be killed in mid-run"
        return task if task["status"] == "processing" and task["attempt"] == attempt else None

    task = eventually_sync(look, within_s=60)
    assert task is not None
    return task


def test_kill_9_of_a_lane_worker_in_mid_run(slow_system: UpProcess) -> None:
    """The lease runs out, the task is requeued, the restarted lane runs it: done in the second attempt."""
    task = slow_system.submit()
    running(slow_system, task["id"])
    worker = slow_system.find("warmlane lane --model anisora")
    host = slow_system.host_of("anisora-0")
    os.kill(worker, signal.SIGKILL)
    eventually_sync(lambda: not is_running(host))  # the death pipe: no orphan holds the card
    done = slow_system.ended(task["id"])
    assert (done["status"], done["attempt"]) == ("done", 2), done
    lines = {line["attempt"]: line["outcome"] for line in slow_system.memory_lines(task["id"])}
    # the next holder of the slot accounts for the attempt that nobody else could
    assert lines == {1: "worker_lost", 2: "done"}


def test_kill_9_of_the_host_child_in_mid_run(slow_system: UpProcess) -> None:
    """Its worker notices at once, gives the lease back, and runs the task again in a new host."""
    task = slow_system.submit(model="phr00t")
    running(slow_system, task["id"])
    host = slow_system.host_of("phr00t-0")
    worker = slow_system.find("warmlane lane --model phr00t")
    os.kill(host, signal.SIGKILL)
    done = slow_system.ended(task["id"])
    assert (done["status"], done["attempt"]) == ("done", 2), done
    assert is_running(worker)
    assert slow_system.host_of("phr00t-0") != host
    lines = [(line["attempt"], line["outcome"]) for line in slow_system.memory_lines(task["id"])]
    assert lines == [(1, "host_lost"), (2, "done")]


def test_a_host_that_dies_twice_fails_the_task(slow_system: UpProcess) -> None:
    task = slow_system.submit(model="phr00t")
    for attempt in (1, 2):
        running(slow_system, task["id"], attempt=attempt)
        os.kill(slow_system.host_of("phr00t-0"), signal.SIGKILL)
    failed = slow_system.ended(task["id"])
    assert (failed["status"], failed["error"]["code"], failed["attempt"]) == ("failed", "worker_lost", 2)
    assert len(slow_system.memory_lines(task["id"])) == 2
    again = slow_system.submit(model="phr00t", num_frames=5)
    assert slow_system.ended(again["id"])["status"] == "done"


def test_cancelling_a_running_task_stops_it_within_a_step(slow_system: UpProcess) -> None:
    task = slow_system.submit(num_frames=5)
    running(slow_system, task["id"])
    answer = slow_system.http.delete(f"/tasks/{task['id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (200, "cancelled")
    lines = eventually_sync(lambda: slow_system.memory_lines(task["id"]))
    assert [line["outcome"] for line in lines] == ["cancelled"]
    # fewer steps than a whole run: the host was stopped, not awaited
    assert slow_system.task(task["id"])["progress"]["step"] < 8
    after = slow_system.ended(slow_system.submit(num_frames=5)["id"])
    assert after["status"] == "done"
    assert not list(slow_system.data_dir.glob(f"artifacts/videos/{task['id']}*"))


def test_kill_9_of_the_server_and_of_the_gateway(slow_system: UpProcess) -> None:
    """Work in hand is kept and settles afterwards; `up` starts both again."""
    task = slow_system.submit()
    running(slow_system, task["id"])
    os.kill(slow_system.find("nats-server"), signal.SIGKILL)
    os.kill(slow_system.find("warmlane gateway"), signal.SIGKILL)
    eventually_sync(slow_system.is_ready, within_s=60)
    done = slow_system.ended(task["id"])
    assert (done["status"], done["attempt"]) == ("done", 1), done
