import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lane_worker.runtime.host_messages import SlotNote
from lane_worker.runtime.slot import SlotHeld, SlotLock, lock_path, read_note

SLOT = "cpu-0"
HOLDER = """
import sys
from pathlib import Path
from lane_worker.runtime.slot import SlotLock
lock = SlotLock.acquire(Path(sys.argv[1]), "cpu-0", "anisora", wait_s=0)
if len(sys.argv) > 2:
    lock.write(sys.argv[2], 1)
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
    return SlotLock.acquire(lock_dir, SLOT, "phr00t", wait_s=wait_s)


def test_a_free_slot_is_taken_and_says_by_whom(tmp_path: Path) -> None:
    lock = acquire(tmp_path / "not-there-yet")
    assert lock.unfinished is None
    assert read_note(tmp_path / "not-there-yet" / "cpu-0.lock") == SlotNote(pid=os.getpid(), model="phr00t")


def test_a_held_slot_is_refused_naming_the_holder(tmp_path: Path, idle_holder: Holder) -> None:
    with pytest.raises(SlotHeld) as refusal:
        acquire(tmp_path)
    assert refusal.value.holder_pid == idle_holder.process.pid
    note = read_note(lock_path(tmp_path, SLOT))
    assert note is not None
    assert note.model == "anisora"


def test_a_slot_is_free_when_its_holder_was_killed(tmp_path: Path, idle_holder: Holder) -> None:
    idle_holder.kill()
    assert acquire(tmp_path).unfinished is None


def test_waiting_ends_when_the_holder_does(tmp_path: Path, idle_holder: Holder) -> None:
    taken: list[SlotLock] = []
    waiter = threading.Thread(target=lambda: taken.append(acquire(tmp_path, wait_s=30)))
    waiter.start()
    idle_holder.kill()
    waiter.join(30)
    assert taken


def test_the_next_holder_learns_what_was_left_undone(tmp_path: Path) -> None:
    holder = Holder(tmp_path, "task-1")
    holder.kill()
    assert acquire(tmp_path).unfinished == SlotNote(holder.process.pid, "anisora", "task-1", 1)


def test_a_finished_task_is_not_left_undone(tmp_path: Path) -> None:
    lock = acquire(tmp_path)
    lock.write("a-task-with-a-long-name", 2)
    lock.write()
    assert read_note(lock_path(tmp_path, SLOT)) == SlotNote(os.getpid(), "phr00t")


def test_a_note_cut_short_by_a_kill_is_read_up_to_its_end(tmp_path: Path) -> None:
    path = lock_path(tmp_path, SLOT)
    path.write_bytes(b'{"pid":1,"model":"anisora","task_id":"t"}\n,"attempt":1}\n')
    assert acquire(tmp_path).unfinished == SlotNote(1, "anisora", "t")


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
