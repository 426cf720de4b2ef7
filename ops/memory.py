"""Memory probes: the only file that talks to NVML."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

import psutil
import pynvml
import structlog
from msgspec import Struct

GIB: Final = 1 << 30
MB: Final = 1_000_000

log = structlog.get_logger("memory_probe")


class GpuInfo(Struct, frozen=True, kw_only=True):
    """One card, addressed by UUID: NVML ignores CUDA_VISIBLE_DEVICES, so an index would mislead."""

    uuid: str
    name: str
    total_bytes: int
    free_bytes: int


class DriverUnusable(Exception):
    """There is an NVIDIA driver, but it does not answer. The text says what it said."""


@contextlib.contextmanager
def _nvml() -> Iterator[bool]:
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        yield False
        return
    except pynvml.NVMLError as error:
        raise DriverUnusable(str(error)) from error
    try:
        yield True
    except pynvml.NVMLError as error:
        raise DriverUnusable(str(error)) from error
    finally:
        pynvml.nvmlShutdown()


def list_gpus() -> list[GpuInfo]:
    """The NVIDIA cards of this machine in NVML's order; empty without a driver.

    Raises DriverUnusable where a driver is loaded and fails (after an update without a restart, say).
    """
    with _nvml() as usable:
        if not usable:
            return []
        return [_info(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())]


def _info(handle: object) -> GpuInfo:
    memory = _device_memory(handle)
    return GpuInfo(
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
    )


def _device_memory(handle: object) -> Any:
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except (
        pynvml.NVMLError_FunctionNotFound,
        pynvml.NVMLError_ArgumentVersionMismatch,
        pynvml.NVMLError_NotSupported,
    ):
        # A driver that knows the first version only. For no other error: the first version counts what the driver
        # reserves as used, and figures of both must never be compared.
        return pynvml.nvmlDeviceGetMemoryInfo(handle)


class Reading(Struct, frozen=True):
    """One look at a slot's memory: in use, and free for a pipeline to come."""

    used_bytes: int
    free_bytes: int


class MemoryProbe(Protocol):
    """Reads the memory of one slot (design §7).

    *absolute_bytes* is the noise that it cannot tell from a leak; it is asked every *poll_s* seconds, for *deadline_s*
    at most, whether a pipeline is gone.
    """

    @property
    def name(self) -> Literal["nvml", "rss"]: ...

    absolute_bytes: int
    poll_s: float
    deadline_s: float

    def read(self, pid: int | None) -> Reading | None:
        """What is in use while *pid* is the pipeline host; None where it cannot be read. Never raises. May block."""
        ...


class NvmlProbe:
    """The memory of a whole card. What others hold there counts: it is missing to the next pipeline all the same."""

    name: Final = "nvml"

    def __init__(self, uuid: str) -> None:
        """*uuid* of a card or of a MIG instance."""
        self.absolute_bytes = GIB
        self.poll_s = 0.25
        self.deadline_s = 10.0
        self._uuid = uuid
        self._handle: object | None = None

    def read(self, pid: int | None) -> Reading | None:
        try:
            if self._handle is None:
                pynvml.nvmlInit()  # and kept: an idle card would be woken up for every look
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
            memory = _device_memory(self._handle)
        except pynvml.NVMLError as error:
            log.warning("memory_unreadable", gpu=self._uuid, error=str(error))
            self._handle = None
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
            return None
        return Reading(used_bytes=int(memory.used), free_bytes=int(memory.free))


class RssProbe:
    """The resident memory of the pipeline host and of the processes below it. A process that is gone holds nothing."""

    name: Final = "rss"

    def __init__(self) -> None:
        self.absolute_bytes = 128 * MB
        self.poll_s = 0.1
        self.deadline_s = 5.0

    def read(self, pid: int | None) -> Reading | None:
        try:
            return Reading(used_bytes=0 if pid is None else _tree_bytes(pid), free_bytes=available_bytes())
        except (OSError, ValueError, KeyError, psutil.Error) as error:  # ValueError, KeyError: another kernel's wording
            log.warning("memory_unreadable", pid=pid, error=repr(error))
            return None


def probe_for(slot: str) -> MemoryProbe | None:
    """The probe of *slot*; None where there is none: no NVML on this machine, or a system without /proc.

    An NVML that is there and fails is a probe all the same: its readings are missing, and prove nothing.
    """
    if slot.startswith("cpu-"):
        return RssProbe() if Path("/proc/self/status").exists() else None
    try:
        with _nvml() as is_there:
            return NvmlProbe(slot) if is_there else None
    except DriverUnusable:
        return NvmlProbe(slot)


def _tree_bytes(pid: int) -> int:
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    total_bytes = 0
    for each in (pid, *(process.pid for process in below)):
        with contextlib.suppress(ProcessLookupError):
            total_bytes += rss_bytes(each)
    return total_bytes


class _CgroupNames(NamedTuple):
    limit: str
    usage: str
    cache: tuple[str, str]


_V1: Final = _CgroupNames(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
_V2: Final = _CgroupNames("memory.max", "memory.current", ("inactive_file", "active_file"))


def available_bytes(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """What a new process could use: what the system has available, or less, where a cgroup of ours allows less.

    File pages count as available, also those of weights that were just unmapped: the kernel drops them when asked.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    return min([int(psutil.virtual_memory().available), *_left_by_cgroups(cgroups, lines)])


def _left_by_cgroups(cgroups: Path, lines: list[str]) -> Iterator[int]:
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
                limit_bytes = int((level / names.limit).read_text())
                stat = dict(entry.split() for entry in (level / "memory.stat").read_text().splitlines())
                cache_bytes = sum(int(stat[name]) for name in names.cache)
                yield limit_bytes - int((level / names.usage).read_text()) + cache_bytes
            if level == root:
                break


def rss_bytes(pid: int) -> int:
    """Resident memory of *pid*: anonymous and file pages, since weights are mapped files (design §7).

    Where there is no /proc, the resident set as the system counts it. Raises ProcessLookupError when *pid* is gone,
    also as a zombie.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError(f"no process {pid}") from error
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "RssAnon" not in fields:  # a zombie holds no memory, and says nothing about it
        raise ProcessLookupError(f"process {pid} has ended")
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
