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


@contextlib.contextmanager
def _nvml() -> Iterator[bool]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, no card
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def list_gpus() -> list[GpuInfo]:
    """The NVIDIA cards of this machine in NVML's order; empty without a driver."""
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
    """Resident memory of *pid* that its release would show: anonymous and file pages (weights are mapped files).

    Raises psutil.NoSuchProcess.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return int(psutil.Process(pid).memory_info().rss)
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile") if name in fields)
