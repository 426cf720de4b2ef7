"""Memory probes: the only file that talks to NVML."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pynvml
from msgspec import Struct


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
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError:  # a driver that knows the first version only
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuInfo(
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
    )


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
