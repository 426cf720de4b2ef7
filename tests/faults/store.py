"""The folder of the artifacts, which can be full, or read-only."""

import subprocess
import time
from pathlib import Path
from typing import Final

from tests.kit.small_disk import SmallDisk, mount, unmount

STORE_MIB: Final = 32


class Store:
    """The folder of the artifacts: a small file system of its own where that can be mounted (root, Linux).

    Then it can be full, or read-only. Otherwise, in both cases, a file takes the place of the folder of videos.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._aside = folder / "videos.aside"
        self._disk = SmallDisk(folder) if mount(folder, mib=STORE_MIB) else None
        (folder / "videos").mkdir()

    @property
    def is_mounted(self) -> bool:
        """Whether the folder is a file system of its own."""
        return self._disk is not None

    def fill(self) -> None:
        """Fills the folder until nothing fits any more."""
        if self._disk is None:
            self.deny()
        else:
            self._disk.fill()

    def empty(self) -> None:
        """Undoes `fill`."""
        if self._disk is not None:
            self._disk.empty()
        self.allow()

    def deny(self) -> None:
        """Lets no process write any more."""
        if self.is_mounted:
            self._remount("ro")
        elif not self._aside.exists():
            (self.folder / "videos").rename(self._aside)
            (self.folder / "videos").write_bytes(b"")

    def allow(self) -> None:
        """Undoes `deny`."""
        if self.is_mounted:
            self._remount("rw")
        elif self._aside.exists():
            (self.folder / "videos").unlink()
            self._aside.rename(self.folder / "videos")

    def close(self) -> None:
        if self._disk is not None:
            unmount(self.folder)
            self._disk = None

    def _remount(self, how: str) -> None:
        # the kernel refuses this (EBUSY) as long as a file is open for writing
        deadline_s = time.monotonic() + 5
        while subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], capture_output=True).returncode:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{self.folder} could not be made {how}")
            time.sleep(0.02)
