"""The memory of this machine: what is available within its control groups, and what a process holds."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psutil


class _CgroupNames(NamedTuple):
    limit: str
    usage: str
    cache: tuple[str, str]


_V1: Final = _CgroupNames(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
_V2: Final = _CgroupNames("memory.max", "memory.current", ("inactive_file", "active_file"))


def available_bytes(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """The memory that a new process could use: what the system has available, or less where a cgroup of ours allows
    less.

    File pages count as available, even those of weights that were just unmapped: the kernel drops them when needed.
    """
    left = _left_by_cgroups(cgroups, _memberships(membership))
    return min([int(psutil.virtual_memory().available), *left])


def total_bytes(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """The memory that all processes together could ever use: the system's, or less where a cgroup of ours allows
    less."""
    limits = [limit_bytes for limit_bytes, _, _ in _limits(cgroups, _memberships(membership))]
    return min([int(psutil.virtual_memory().total), *limits])


def _memberships(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _left_by_cgroups(cgroups: Path, lines: list[str]) -> Iterator[int]:
    for limit_bytes, level, names in _limits(cgroups, lines):
        with contextlib.suppress(OSError, ValueError, KeyError):
            stat = dict(entry.split() for entry in (level / "memory.stat").read_text().splitlines())
            cache_bytes = sum(int(stat[name]) for name in names.cache)
            yield limit_bytes - int((level / names.usage).read_text()) + cache_bytes


def _limits(cgroups: Path, lines: list[str]) -> Iterator[tuple[int, Path, _CgroupNames]]:
    """Each limit that holds, with its cgroup's folder."""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names, root = _V2, cgroups
        elif "memory" in controllers.split(","):
            names, root = _V1, cgroups / "memory"
        else:
            continue
        folder = root / path.lstrip("/")
        for level in (folder, *folder.parents):  # a limit further up holds as well
            with contextlib.suppress(OSError, ValueError, KeyError):  # no such level here, or no limit ("max")
                yield int((level / names.limit).read_text()), level, names
            if level == root:
                break


def rss_bytes(pid: int) -> int:
    """Resident memory of *pid*: anonymous and file pages, since weights are mapped files (design §7).

    Where there is no /proc, the resident set as the system counts it. Raises ProcessLookupError when *pid* is gone,
    or is a zombie.
    """
    try:
        # the name of a program may be any bytes
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError(f"no process {pid}") from error
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "RssAnon" not in fields:  # a zombie holds no memory, and says nothing about it
        raise ProcessLookupError(f"process {pid} has ended")
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))


def tree_bytes(pid: int) -> int:
    """Resident memory of *pid* and of the processes below it; 0 when it is gone. Raises what psutil does."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    total_bytes = 0
    for each in (pid, *(process.pid for process in below)):
        with contextlib.suppress(ProcessLookupError):
            total_bytes += rss_bytes(each)
    return total_bytes
