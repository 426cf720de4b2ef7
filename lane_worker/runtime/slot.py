"""The lock of a slot (a GPU, or `cpu-N`): what keeps two pipelines off one card (design §7).

The pipeline host child takes it before CUDA starts and holds it until it exits, however it exits. Nothing else, not
even NATS, decides who may use the card. The file's content, a `SlotNote`, says who holds it and which task it runs.
"""

import fcntl
import os
import re
import time
from pathlib import Path
from typing import Final, Self

import msgspec

from lane_worker.runtime.host_messages import SlotNote

SLOT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
RETRY_S: Final = 0.05
_ENCODER: Final = msgspec.json.Encoder()


class SlotHeld(Exception):
    """Another process holds the slot, and went on holding it while this one waited."""

    def __init__(self, slot: str, holder_pid: int | None) -> None:
        super().__init__(f"slot {slot} is held by process {holder_pid or '(unknown)'}")
        self.holder_pid = holder_pid


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


class SlotLock:
    """A held slot, until the process ends.

    There is no release: a card's memory is free only when its process is gone, and the kernel drops the lock then.
    The file stays, since a removed one could be locked a second time.
    """

    def __init__(self, descriptor: int, path: Path, model: str, unfinished: SlotNote | None) -> None:
        self._descriptor = descriptor
        self._path = path
        self._model = model
        self.unfinished = unfinished
        """The note of a holder that ended in the middle of a task; its memory line is still to be written (FR-009)."""

    @classmethod
    def acquire(cls, lock_dir: Path, slot: str, model: str, *, wait_s: float) -> Self:
        """Take the lock of *slot*, trying for *wait_s* seconds (this blocks). Raises SlotHeld, OSError, ValueError."""
        path = lock_path(lock_dir, slot)
        lock_dir.mkdir(parents=True, exist_ok=True)
        deadline_s = time.monotonic() + wait_s
        while True:
            descriptor = _try_lock(path)
            if descriptor is not None:
                break
            if time.monotonic() >= deadline_s:
                note = read_note(path)
                raise SlotHeld(slot, None if note is None else note.pid)
            time.sleep(RETRY_S)
        last = _parse(os.pread(descriptor, 65536, 0))
        lock = cls(descriptor, path, model, last if last is not None and last.task_id is not None else None)
        lock.write()
        return lock

    def write(self, task_id: str | None = None, attempt: int = 0) -> None:
        """Note that *task_id* runs now; without one, that none does."""
        note = SlotNote(pid=os.getpid(), model=self._model, task_id=task_id, attempt=attempt)
        line = _ENCODER.encode(note) + b"\n"
        # One write, and readers stop at the newline: whoever is killed in between leaves the old note or the new one.
        os.pwrite(self._descriptor, line, 0)
        os.ftruncate(self._descriptor, len(line))


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def _parse(content: bytes) -> SlotNote | None:
    try:
        return msgspec.json.decode(content.partition(b"\n")[0], type=SlotNote)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
