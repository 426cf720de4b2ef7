import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lane_worker.forking.host_messages import SlotNote
from lane_worker.forking.outcome import SlotTaken
from lane_worker.forking.slot import SlotHeld, SlotLock, lock_path, may_take_over, process_start, read_note
from tests.kit.support import BOUND_S

SLOT = "cpu-0"
HOLDER = """
import sys
from pathlib import Path
from lane_worker.forking.slot import SlotLock
lock = SlotLock.acquire(Path(sys.argv[1]), "cpu-0", role="degraded", term=7, wait_s=0)
if len(sys.argv) > 2:
    lock.write(model="anisora", task_id=sys.argv[2], attempt=1)
print("held", flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process that holds the slot."""

    def __init__(self, lock_dir: Path, *task_id: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(lock_dir), *task_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def idle_holder(tmp_path: Path) -> Iterator[Holder]:
    holder = Holder(tmp_path)
    yield holder
    holder.kill()


def acquire(lock_dir: Path, wait_s: float = 0) -> SlotLock:
    return SlotLock.acquire(lock_dir, SLOT, role="lane", term=0, wait_s=wait_s)


def own_note(model: str | None = None) -> SlotNote:
    return SlotNote(os.getpid(), process_start(os.getpid()), "lane", 0, model)


def test_a_free_slot_is_taken_and_says_by_whom(tmp_path: Path) -> None:
    lock = acquire(tmp_path / "not-there-yet")
    assert lock.unfinished is None
    assert read_note(tmp_path / "not-there-yet" / "cpu-0.lock") == own_note()


def test_a_held_slot_is_refused_naming_the_holder(tmp_path: Path, idle_holder: Holder) -> None:
    with pytest.raises(SlotHeld) as refusal:
        acquire(tmp_path)
    pid = idle_holder.process.pid
    assert refusal.value.holder == SlotNote(pid, process_start(pid), "degraded", 7)


def test_a_slot_is_free_when_its_holder_was_killed(tmp_path: Path, idle_holder: Holder) -> None:
    idle_holder.kill()
    assert acquire(tmp_path).unfinished is None


def test_a_slot_whose_file_was_removed_is_kept(tmp_path: Path) -> None:
    """As after a clean-up: the lock of a removed file keeps no process off the card."""
    lock = acquire(tmp_path)
    lock.write(model="phr00t", task_id="task", attempt=1)
    for removed in (lock_path(tmp_path, SLOT), tmp_path):
        shutil.rmtree(removed) if removed.is_dir() else removed.unlink()
        lock.keep()
        with pytest.raises(SlotHeld) as refusal:
            acquire(tmp_path)
        assert refusal.value.holder == SlotNote(os.getpid(), process_start(os.getpid()), "lane", 0, "phr00t", "task", 1)


def test_a_slot_that_was_taken_meanwhile_is_given_up(tmp_path: Path) -> None:
    lock = acquire(tmp_path)
    lock_path(tmp_path, SLOT).unlink()
    holder = Holder(tmp_path)
    with pytest.raises(SlotHeld) as lost:
        lock.keep()
    assert lost.value.holder is not None
    assert lost.value.holder.pid == holder.process.pid
    holder.kill()


def test_waiting_ends_when_the_holder_does(tmp_path: Path, idle_holder: Holder) -> None:
    taken: list[SlotLock] = []
    waiter = threading.Thread(target=lambda: taken.append(acquire(tmp_path, wait_s=BOUND_S)))
    waiter.start()
    idle_holder.kill()
    waiter.join()
    assert taken


def test_the_next_holder_learns_what_was_left_undone(tmp_path: Path) -> None:
    holder = Holder(tmp_path, "task-1")
    pid = holder.process.pid
    started = process_start(pid)
    holder.kill()
    assert acquire(tmp_path).unfinished == SlotNote(pid, started, "degraded", 7, "anisora", "task-1", 1)


def test_a_finished_task_is_not_left_undone(tmp_path: Path) -> None:
    lock = acquire(tmp_path)
    lock.write(model="phr00t", task_id="a-task-with-a-long-name", attempt=2)
    lock.write(model="phr00t")
    assert read_note(lock_path(tmp_path, SLOT)) == own_note("phr00t")


def test_a_note_cut_short_by_a_kill_is_read_up_to_its_end(tmp_path: Path) -> None:
    path = lock_path(tmp_path, SLOT)
    path.write_bytes(b'{"pid":1,"started":2,"role":"lane","term":0,"model":"anisora","task_id":"t"}\n,"attempt":1}\n')
    assert acquire(tmp_path).unfinished == SlotNote(1, 2, "lane", 0, "anisora", "t")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'{"pid":', b"[]"])
def test_a_note_that_cannot_be_read_does_not_keep_the_slot_closed(tmp_path: Path, content: bytes) -> None:
    lock_path(tmp_path, SLOT).write_bytes(content)
    assert acquire(tmp_path).unfinished is None


@pytest.mark.parametrize("slot", ["", ".", "../cpu-0", "a/b", "-x", "x\n", "x" * 200])
def test_a_slot_name_cannot_leave_the_folder(tmp_path: Path, slot: str) -> None:
    with pytest.raises(ValueError, match="not a slot"):
        lock_path(tmp_path, slot)


@pytest.mark.parametrize("slot", ["cpu-12", "GPU-5f0c3c0e-0b4d-7f8e-9d0a-111111111111", "MIG-41b36db5-df92-5926"])
def test_the_names_that_exist_are_slots(tmp_path: Path, slot: str) -> None:
    assert lock_path(tmp_path, slot).parent == tmp_path


@pytest.mark.parametrize(
    ("holder", "term", "expected"),
    [
        pytest.param(SlotNote(1, 1, "degraded", 6), 7, True, id="earlier-leadership"),
        pytest.param(SlotNote(1, 1, "degraded", 7), 7, False, id="same-leadership"),
        pytest.param(SlotNote(1, 1, "degraded", 8), 7, False, id="later-leadership"),
        pytest.param(SlotNote(1, 1, "lane", 0), 7, False, id="lane"),
        pytest.param(SlotNote(1, 1, "degraded", 0), 0, False, id="by-a-lane"),
    ],
)
def test_only_an_earlier_leadership_is_put_aside(holder: SlotNote, term: int, expected: bool) -> None:
    assert may_take_over(holder, term=term) is expected


def test_a_pid_and_its_start_name_one_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as first:
        own = process_start(os.getpid())
        assert own is not None
        started = process_start(first.pid)
        assert started is not None
        assert started > own
        first.kill()
    assert process_start(first.pid) is None


def test_a_slot_is_held_by_a_worker_and_not_by_a_number(tmp_path: Path) -> None:
    """In a container every worker is process 24."""
    lock = SlotLock.acquire(tmp_path, SLOT, role="degraded", term=1, wait_s=0, worker="degraded-0")
    with pytest.raises(SlotHeld) as refused:
        SlotLock.acquire(tmp_path, SLOT, role="degraded", term=2, wait_s=0, worker="degraded-1")
    del lock
    who = f"worker degraded-0 on host {socket.gethostname()} (process {os.getpid()} there)"
    assert str(refused.value) == f"slot {SLOT} is held by {who}"
    assert str(SlotTaken(SLOT, refused.value.holder)).startswith(f"slot {SLOT} is held by {who}: stop that one")
