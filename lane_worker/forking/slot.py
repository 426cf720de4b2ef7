"""The lock of a slot (a GPU, or `cpu-N`): what keeps two pipelines off one card (design §7).

The pipeline host child takes it before CUDA starts and holds it until it exits, however it exits. Nothing else, not
even NATS, decides who may use the card. The file's content, a `SlotNote`, says who holds it, for which leadership,
and which task it runs.

`filelock` will not do here: `keep` makes the file anew, in any thread, and holds the old descriptor until then.
"""

import fcntl
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import Final, Self

import msgspec

from contracts.nesting import decode_json
from lane_worker.forking.host_messages import Role, SlotNote

SLOT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
RETRY_S: Final = 0.05
_ENCODER: Final = msgspec.json.Encoder()


class SlotHeld(Exception):
    """Another process holds the slot, and went on holding it while this one waited."""

    def __init__(self, slot: str, holder: SlotNote | None) -> None:
        super().__init__(f"slot {slot} is held by {'an unknown process' if holder is None else holder.who}")
        self.holder = holder


def lock_path(lock_dir: Path, slot: str) -> Path:
    """The lock file of *slot*. Raises ValueError for a name that could leave the folder."""
    if not SLOT_NAME.fullmatch(slot):
        raise ValueError(f"not a slot: {slot!r}; a slot is a GPU's UUID or cpu-N")
    return lock_dir / f"{slot}.lock"


def read_note(path: Path) -> SlotNote | None:
    """The note in the lock file at *path*; None where there is none that can be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return _parse(content)


def may_take_over(holder: SlotNote, *, term: int) -> bool:
    """Whether the leader of *term* may kill the pipeline host *holder* to get its slot (design §7). Pure.

    It may kill only a degraded worker's host of an earlier leadership: that worker no longer leads, and may be stopped
    or cut off, so that nobody else ends its host. It may never kill a lane's host.
    """
    return holder.role == "degraded" and holder.term < term


def process_start(pid: int) -> int | None:
    """When *pid* began, in clock ticks since boot: a pid alone may be another process's by now. None if unknown."""
    try:
        # the name of a program may be any bytes
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # field 22; the name before the bracket may hold blanks


class SlotLock:
    """A held slot, until the process ends.

    There is no release: a card's memory is free only when its process is gone, and the kernel drops the lock then.
    The file stays: otherwise another process could make and lock one in its place. `keep` sees to that.
    """

    def __init__(
        self, path: Path, descriptor: int, *, role: Role, term: int, unfinished: SlotNote | None, worker: str = ""
    ) -> None:
        self._path = path
        self._descriptor = descriptor
        self._turn = threading.Lock()
        self._line = b""
        self._role, self._term = role, term
        self._worker, self._host = worker, socket.gethostname() if worker else ""
        self._started = process_start(os.getpid())
        self.unfinished = unfinished
        """The note of a holder that ended in the middle of a task; its memory line is still to be written (FR-009)."""

    @classmethod
    def acquire(cls, lock_dir: Path, slot: str, *, role: Role, term: int, wait_s: float, worker: str = "") -> Self:
        """Take the lock of *slot* for *worker*, trying for *wait_s* seconds (this blocks).

        Raises SlotHeld, OSError, ValueError.
        """
        path = lock_path(lock_dir, slot)
        lock_dir.mkdir(parents=True, exist_ok=True)
        deadline_s = time.monotonic() + wait_s
        while True:
            descriptor = _try_lock(path)
            if descriptor is not None:
                break
            if time.monotonic() >= deadline_s:
                raise SlotHeld(slot, read_note(path))
            time.sleep(RETRY_S)
        last = _parse(os.pread(descriptor, 65536, 0))
        unfinished = last if last is not None and last.task_id is not None else None
        lock = cls(path, descriptor, role=role, term=term, unfinished=unfinished, worker=worker)
        lock.write()
        return lock

    def write(self, *, model: str | None = None, task_id: str | None = None, attempt: int = 0) -> None:
        """Notes what is resident now and which task runs; None where an argument is left out."""
        note = SlotNote(
            pid=os.getpid(),
            started=self._started,
            role=self._role,
            term=self._term,
            model=model,
            task_id=task_id,
            attempt=attempt,
            worker=self._worker,
            host=self._host,
        )
        with self._turn:
            self._line = _ENCODER.encode(note) + b"\n"
            self._put()

    def keep(self) -> None:
        """Makes the file again where somebody has removed it: a lock without a name keeps nobody off the card. Call it
        often, from any thread. Raises SlotHeld when another process has the slot by now: this one has to end. Raises
        OSError."""
        with self._turn:
            if _is_at(self._path, self._descriptor):
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _try_lock(self._path)
            if descriptor is None:
                raise SlotHeld(self._path.stem, read_note(self._path))
            os.close(self._descriptor)
            self._descriptor = descriptor
            self._put()

    def _put(self) -> None:
        # One write, and readers stop at the newline: a process killed in between leaves the old note or the new one.
        os.pwrite(self._descriptor, self._line, 0)
        os.ftruncate(self._descriptor, len(self._line))


def _try_lock(path: Path) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # the file was removed in between: locking it keeps nobody off the slot


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the file *descriptor* is what stands at *path*."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _parse(content: bytes) -> SlotNote | None:
    try:
        return decode_json(content.partition(b"\n")[0], SlotNote)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
