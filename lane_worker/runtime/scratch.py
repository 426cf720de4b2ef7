"""Files of the task in hand, in a folder of this process alone."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

LOCK: Final = "lock"

log = structlog.get_logger("loop")


class Scratch:
    """`<data>/scratch/<slot>/<owner>`. The worker that this one replaces may still be finishing its task in its own.

    The owner holds an flock on the file `lock` in its folder, which the kernel drops when the process ends, however it
    ends. Only the lock shows whether the owner lives: the folder may be old, since a standby writes nothing for days.
    """

    def __init__(self, data_dir: Path, *, slot: str, owner: str) -> None:
        self._root = data_dir / "scratch" / slot
        self.folder = self._root / owner
        self._lock: int | None = None

    def ensure(self) -> None:
        """Makes the folder, or makes it again where somebody removed it, and holds it. Raises OSError."""
        while not self._is_held():
            self._let_go()
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # removed this very moment: once more
                self._lock = _open(self.folder / LOCK, os.O_CREAT)
                # this wait ends: a process that holds the lock takes the folder for nobody's, removes it, and lets go
                fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove_what_others_left(self) -> None:
        """Removes the folders of workers that died. One without a lock is of an earlier version and stays."""
        for folder in _folders(self._root):
            if folder != self.folder:
                _remove_unless_held(folder)

    def remove(self) -> None:
        """Removes the folder, whatever is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._let_go()

    def _is_held(self) -> bool:
        if self._lock is None:
            return False
        try:
            there = (self.folder / LOCK).stat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._lock))

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def make_room(scratch: Scratch, task_id: str) -> None:
    """Makes the folder of *scratch* again where somebody has removed it since the last task."""
    try:
        scratch.ensure()
    except OSError as error:  # then the image cannot be kept, or the video not be written, and that ends the task
        log.error("no_scratch_folder", task_id=task_id, error=str(error))


def _folders(root: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from list(root.iterdir())


def _remove_unless_held(folder: Path) -> None:
    try:
        lock = _open(folder / LOCK, 0)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # held, or a file system without locks
        return
    finally:
        os.close(lock)


def _open(path: Path, how: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | how, 0o644)
