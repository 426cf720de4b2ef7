"""What the kernel reports of the memory of this process's cgroup, which is its container's. It reads the files of
cgroup v2 and v1 (Documentation/admin-guide of Linux)."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MOUNT: Final = Path("/sys/fs/cgroup")
OWN: Final = Path("/proc/self/cgroup")
# v1 writes the largest number of pages for "no limit".
_NO_LIMIT_BYTES: Final = 1 << 62


def oom_kills(*, mount: Path = MOUNT, own: Path = OWN) -> int | None:
    """How many processes of this cgroup the kernel killed because its memory ran out; None where that is not known."""
    for folder in _folders(mount, own):
        for name in ("memory.events", "memory.oom_control"):  # v2, v1
            with contextlib.suppress(OSError):
                found = re.search(r"^oom_kill (\d+)$", (folder / name).read_text(encoding="ascii"), re.MULTILINE)
                if found:
                    return int(found[1])
    return None


def memory_limit_bytes(*, mount: Path = MOUNT, own: Path = OWN) -> int | None:
    """How much memory this cgroup may have; None where it is not bounded, or not known."""
    for folder in _folders(mount, own):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
                limit_bytes = int((folder / name).read_text(encoding="ascii"))
                return limit_bytes if limit_bytes < _NO_LIMIT_BYTES else None
    return None


def _folders(mount: Path, own: Path) -> Iterator[Path]:
    """Where this cgroup's files may be: by its path, and at the root of what a container sees."""
    with contextlib.suppress(OSError):
        for line in own.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":  # v2
                yield mount / path.lstrip("/")
                yield mount
            elif "memory" in controllers.split(","):  # v1
                yield mount / "memory" / path.lstrip("/")
                yield mount / "memory"
