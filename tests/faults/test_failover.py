"""The leader of the degraded queue dies, or is stopped, in the middle of a task; its standby takes over (SC-009)."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from contracts.topology import LEADER_TTL_S
from lane_worker.forking.slot import lock_path, read_note
from tests.kit.gate import Gate, gated_forks
from tests.kit.support import eventually_sync, is_running, settings_file
from tests.kit.system import UpProcess

SLOT = "cpu-0"
WORKERS = ("degraded-0", "degraded-1")
SAMPLE_S = 0.02


class Card:
    """Checks repeatedly which process holds the slot with a model, and whether an earlier holder still lives."""

    def __init__(self, up: UpProcess) -> None:
        self.lock = lock_path(up.data_dir / "locks", SLOT)
        self.held_by: list[int] = []
        self.broken: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            note = read_note(self.lock)
            if note is None or note.model is None:
                continue
            if note.pid not in self.held_by:
                self.held_by.append(note.pid)
            # an earlier holder must be gone before this one gets the lock, so the moment of the look does not matter
            others = [pid for pid in self.held_by if pid != note.pid and is_running(pid)]
            if others:
                self.broken.append(f"{note.pid} holds {note.model} while {others} live")

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        assert self.broken == []


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """A degraded worker and its standby, and no lanes. A silent worker loses its lease when it loses the leadership."""
    folder = tmp_path_factory.mktemp("failover")
    settings = settings_file(folder, lease_s=LEADER_TTL_S, lease_renew_s=0.25, reconnect_grace_s=5.0)
    options = ("--lanes", "anisora=0,phr00t=0", "--standbys", "1", "--step-seconds", "0.5")
    up = UpProcess(folder, *options, "--settings", str(settings), **gated_forks())
    up.start()
    yield up
    up.stop()


@pytest.fixture
def up(pair: UpProcess) -> Iterator[UpProcess]:
    """The pair, once one leads and the other stands by. A second pipeline on the card fails the test."""
    eventually_sync(lambda: {role(pair, name) for name in WORKERS} == {"leads", "stands by"}, within_s=60)
    card = Card(pair)
    yield pair
    card.close()


def role(up: UpProcess, name: str) -> str:
    """The last report of *name* about its role."""
    try:
        lines = up.log_lines(name)
    except FileNotFoundError:
        return ""
    said = {"serves": "leads", "stands_by": "stands by", "leads_no_more": "ends"}
    return next((said[line["event"]] for line in reversed(lines) if line["event"] in said), "")


def leader_and_standby(up: UpProcess) -> tuple[str, str]:
    return in_turn(next(name for name in WORKERS if role(up, name) == "leads"))


def in_turn(leader: str) -> tuple[str, str]:
    """*leader*, then the other one."""
    first, second = WORKERS
    return (first, second) if leader == first else (second, first)


def process_of(up: UpProcess, name: str) -> int:
    return up.find("warmlane degraded", f"--name {name}")


@contextlib.contextmanager
def nobody_restarts(up: UpProcess) -> Iterator[None]:
    """A worker that is killed in the block stays away: `up` would restart it in a second, and it might lead again."""
    os.kill(up.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(up.pid, signal.SIGCONT)


def running_task(up: UpProcess, gate: Gate) -> dict[str, Any]:
    """A task that the leader runs until *gate* is open."""
    task = up.submit(model="anisora", num_frames=9, prompt=gate.prompt)
    up.runs(task["id"])
    return up.task(task["id"])


def test_kill_9_of_the_leader(up: UpProcess, gate: Gate) -> None:
    with nobody_restarts(up):
        task = running_task(up, gate)
        leader, standby = in_turn(task["worker"])
        host = up.host_of(leader)
        os.kill(process_of(up, leader), signal.SIGKILL)
        gate.open()
        done = up.ended(task["id"])
    assert (done["status"], done["attempt"], done["worker"]) == ("done", 2, standby), done
    assert not is_running(host)
    lines = {line["attempt"]: line["outcome"] for line in up.memory_lines(task["id"])}
    # the next holder of the slot accounts for the attempt that no other process could
    assert lines == {1: "worker_lost", 2: "done"}
    eventually_sync(lambda: f"degraded worker {standby} leads" in up.output.read_text())


def test_sigstop_of_the_leader(up: UpProcess, gate: Gate) -> None:
    """Its child would hold the card for ever: the standby kills the child. When the old leader wakes, it changes
    nothing, and stands by."""
    task = running_task(up, gate)
    leader, standby = in_turn(task["worker"])
    process, host = process_of(up, leader), up.host_of(leader)
    os.kill(process, signal.SIGSTOP)
    try:
        eventually_sync(lambda: not is_running(host))
        gate.open()
        done = up.ended(task["id"])
        assert (done["status"], done["attempt"], done["worker"]) == ("done", 2, standby), done
        assert is_running(process)
    finally:
        os.kill(process, signal.SIGCONT)
    eventually_sync(lambda: role(up, leader) == "stands by", within_s=60)
    assert role(up, standby) == "leads"
    assert up.task(task["id"]) == done
    after = up.ended(up.submit(model="phr00t", num_frames=9)["id"])
    assert (after["status"], after["worker"]) == ("done", standby)
    # it is a real standby: it takes over
    with nobody_restarts(up):
        os.kill(process_of(up, standby), signal.SIGKILL)
        again = up.ended(up.submit(model="phr00t", num_frames=9)["id"])
    assert (again["status"], again["worker"]) == ("done", leader)


def test_readyz_follows_a_leader_that_is_frozen_and_wakes(up: UpProcess) -> None:
    """The frozen leader holds its slot and serves nobody, and there is no standby that could."""
    leader, standby = leader_and_standby(up)
    host, process, other = up.host_of(leader), process_of(up, leader), process_of(up, standby)

    def has_a_degraded_worker() -> bool:
        served: bool = up.http.get("/readyz").json()["degraded_worker"]
        return served

    with nobody_restarts(up):
        os.kill(other, signal.SIGSTOP)
        try:
            assert has_a_degraded_worker()
            os.kill(process, signal.SIGSTOP)
            eventually_sync(lambda: not has_a_degraded_worker())
            assert is_running(host)
            os.kill(process, signal.SIGCONT)
            eventually_sync(has_a_degraded_worker)
            task = up.ended(up.submit(model="phr00t", num_frames=9)["id"])
            assert (task["status"], task["worker"]) == ("done", leader)
        finally:
            os.kill(process, signal.SIGCONT)
            os.kill(other, signal.SIGCONT)


def test_kill_9_of_the_server(up: UpProcess, gate: Gate) -> None:
    """The worker keeps its work in hand, and a worker leads afterwards."""
    task = running_task(up, gate)
    os.kill(up.find("nats-server"), signal.SIGKILL)
    eventually_sync(up.is_ready, within_s=60)
    gate.open()
    assert up.ended(task["id"])["status"] == "done"
    assert up.ended(up.submit(model="phr00t", num_frames=9)["id"])["status"] == "done"


def test_what_up_says(up: UpProcess) -> None:
    said = up.output.read_text()
    assert "no lanes were asked for" in said
    assert "degraded worker degraded-0 leads" in said
    for model in ("anisora", "phr00t"):
        assert f"-so {model}.mp4" in said


def test_ctrl_c_leaves_nothing(up: UpProcess) -> None:
    below = up.below()
    assert up.interrupt() == 0
    assert [pid for pid in below if is_running(pid)] == []
