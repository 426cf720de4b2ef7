"""A file system of a few MB that can really be full."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """The file system mounted on *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Fills the disk until nothing fits any more."""
        free = os.statvfs(self.folder)
        with self._filler.open("ab") as filler:
            with contextlib.suppress(OSError):
                os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize)
            with contextlib.suppress(OSError):
                while True:
                    os.write(filler.fileno(), b"\0" * 4096)

    def empty(self) -> None:
        """Frees what `fill` took."""
        self._filler.unlink(missing_ok=True)


def mount(folder: Path, *, mib: int) -> bool:
    """Makes *folder* and mounts a file system of *mib* MiB on it; returns whether it could (root, Linux)."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "warmlane-test", str(folder)]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def unmount(folder: Path) -> None:
    """Unmounts *folder*, even while a process has files open there."""
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


@contextlib.contextmanager
def small_disk(folder: Path, *, mib: int) -> Iterator[SmallDisk]:
    """The file system; the test is skipped where none can be mounted."""
    if not mount(folder, mib=mib):
        pytest.skip("no file system can be mounted here: that needs root on Linux")
    try:
        yield SmallDisk(folder)
    finally:
        unmount(folder)
