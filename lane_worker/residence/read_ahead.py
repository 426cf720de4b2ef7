"""Reads the files of the next pipeline while the old one still runs, is released and proven gone (ADR 0023, ADR 0043).

They go into the page cache, which the system drops when it needs the memory. That makes nothing resident: invariant 5
is about what a host and a card hold.
"""

import os
import threading
from pathlib import Path
from typing import Final

from ops.machine.host_memory import available_bytes

# The kernel cuts each request to what a disk takes at once. That is about this much or more, so we ask in such pieces.
PIECE_BYTES: Final = 1 << 20
WEIGHTS: Final = "*.safetensors"


class ReadAhead:
    """Reads ahead the weights of one folder at a time, in a thread of its own. It is a hint: nothing here raises or
    waits."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._folder: Path | None = None

    def begin(self, folder: Path) -> None:
        """Reads the weights of *folder* from now on, and no others."""
        self.stop()
        self._stop, self._folder = threading.Event(), folder
        threading.Thread(target=read_ahead, args=(folder, self._stop), name="read-ahead", daemon=True).start()

    def expect(self, folder: Path) -> None:
        """As `begin`, for a folder that is probably needed next. Does nothing for the one that was begun last."""
        if folder != self._folder:
            self.begin(folder)

    def stop(self) -> None:
        """Reads no more."""
        self._stop.set()
        self._folder = None


def read_ahead(folder: Path, stop: threading.Event) -> int:
    """Asks the system to read the weights, in the order in which diffusers loads them. Returns how many bytes it
    asked for.

    It asks for nothing where the system has no such call, or where the files would not fit into the available memory:
    their beginning would be dropped before it is used.
    """
    if not hasattr(os, "posix_fadvise"):
        return 0
    asked_bytes = 0
    try:
        files = [(path, path.stat().st_size) for path in sorted(folder.rglob(WEIGHTS))]
        if sum(size_bytes for _, size_bytes in files) > available_bytes():
            return 0
        for path, size_bytes in files:
            with path.open("rb") as file:
                for offset in range(0, size_bytes, PIECE_BYTES):
                    if stop.is_set():
                        return asked_bytes
                    os.posix_fadvise(file.fileno(), offset, PIECE_BYTES, os.POSIX_FADV_WILLNEED)
                    asked_bytes += min(PIECE_BYTES, size_bytes - offset)
    except OSError:  # the load finds out, and reports it
        pass
    return asked_bytes
