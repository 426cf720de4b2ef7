"""Processes that really die, and what happens to their tasks."""

import os
import signal
from pathlib import Path

import pytest

from tests.kit import warm_cli
from tests.kit.gate import Gate, gated_forks
from tests.kit.support import clean_environment, eventually_sync, is_running
from tests.kit.system import UpProcess


@pytest.fixture
def up(slow_system: UpProcess) -> UpProcess:
    """The slow system, once all its lanes are warm again."""
    eventually_sync(slow_system.is_ready, within_s=60)
    return slow_system


def test_kill_9_of_a_lane_worker_in_mid_run(up: UpProcess, gate: Gate) -> None:
    """The lease ends, the task is requeued, the worker that serves the model by then runs it: done, attempt 2."""
    worker, host = up.find("warmlane lane --model anisora"), up.host_of("anisora-0")
    task = up.submit(prompt=gate.prompt)
    up.runs(task["id"])
    os.kill(worker, signal.SIGKILL)
    eventually_sync(lambda: not is_running(host))  # the death pipe: no orphan holds the card
    gate.open()
    done = up.ended(task["id"])
    assert (done["status"], done["attempt"]) == ("done", 2), done

    def lines() -> bool:
        # the next holder of the slot accounts for the attempt that no other process could
        outcomes = {line["attempt"]: line["outcome"] for line in up.memory_lines(task["id"])}
        return outcomes == {1: "worker_lost", 2: "done"}

    eventually_sync(lines, within_s=60)


def test_kill_9_of_the_host_child_in_mid_run(up: UpProcess, gate: Gate) -> None:
    """Its worker notices at once, gives the lease back, and starts a new host; the task runs again, here or there."""
    worker, host = up.find("warmlane lane --model phr00t"), up.host_of("phr00t-0")
    task = up.submit(model="phr00t", prompt=gate.prompt)
    up.runs(task["id"])
    os.kill(host, signal.SIGKILL)
    gate.open()
    done = up.ended(task["id"])
    assert (done["status"], done["attempt"]) == ("done", 2), done
    assert is_running(worker)
    eventually_sync(up.is_ready, within_s=60)
    assert up.host_of("phr00t-0") != host
    lines = [(line["attempt"], line["outcome"]) for line in up.memory_lines(task["id"])]
    assert lines == [(1, "host_lost"), (2, "done")]


def test_a_host_that_dies_twice_fails_the_task(up: UpProcess, gate: Gate) -> None:
    task = up.submit(prompt=gate.prompt)
    for attempt in (1, 2):
        # first the lane's host, then perhaps the degraded worker's
        os.kill(up.runs(task["id"], attempt), signal.SIGKILL)
    failed = up.ended(task["id"])
    assert (failed["status"], failed["error"]["code"], failed["attempt"]) == ("failed", "worker_lost", 2)
    assert len(up.memory_lines(task["id"])) == 2
    eventually_sync(up.is_ready, within_s=60)
    again = up.submit(num_frames=9)
    assert up.ended(again["id"])["status"] == "done"


def test_kill_9_of_up_in_mid_run_and_a_restart(tmp_path: Path, gate: Gate) -> None:
    """The old lane still drains while the new one starts: neither takes the other's files, slot or heartbeat."""
    up = UpProcess(tmp_path, "--lanes", "phr00t=1", "--step-seconds", "1", **gated_forks())
    up.start()
    tasks = [up.submit(model="phr00t", num_frames=9, prompt=gate.prompt) for _ in range(2)]
    up.runs(tasks[0]["id"])
    os.kill(up.pid, signal.SIGKILL)
    gate.open()
    eventually_sync(up.ports_are_free, within_s=60)
    up.start()
    ended = [up.ended(task["id"]) for task in tasks]
    assert [task["status"] for task in ended] == ["done", "done"], ended
    assert all(len(up.memory_lines(task["id"])) >= 1 for task in tasks)
    up.stop()


def test_cancelling_a_running_task_stops_it_within_a_step(up: UpProcess, gate: Gate) -> None:
    task = up.submit(num_frames=9, prompt=gate.prompt)
    up.runs(task["id"])
    answer = up.http.delete(f"/tasks/{task['id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (200, "cancelled")
    lines = eventually_sync(lambda: up.memory_lines(task["id"]))
    assert [line["outcome"] for line in lines] == ["cancelled"]
    # fewer steps than a whole run: the host was stopped, not awaited
    assert up.task(task["id"])["progress"]["step"] < 8
    after = up.ended(up.submit(num_frames=9)["id"])
    assert after["status"] == "done"
    assert not list(up.data_dir.glob(f"artifacts/videos/{task['id']}*"))


def test_kill_9_of_the_server_and_of_the_gateway(up: UpProcess, gate: Gate) -> None:
    """The workers keep their work in hand and settle it afterwards; `up` restarts both processes."""
    server, gateway = up.find("nats-server"), up.find("warmlane gateway")
    task = up.submit(prompt=gate.prompt)
    up.runs(task["id"])
    os.kill(server, signal.SIGKILL)
    os.kill(gateway, signal.SIGKILL)
    eventually_sync(up.is_ready, within_s=60)
    gate.open()
    done = up.ended(task["id"])
    assert (done["status"], done["attempt"]) == ("done", 1), done


def test_the_demo_of_a_fallback(up: UpProcess) -> None:
    """The demo kills a lane with a request in hand: its requests degrade, come back, and none fails."""
    result = warm_cli.run("demo", "--fallback", "--url", up.url, env=clean_environment(), timeout=150)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "requests failed" in result.stdout
    assert "attempt 2: done" in result.stdout
    assert result.stdout.rstrip().endswith("and every one since")
