"""What happens after every inference and failed load (FR-008), and the memory reading that proves it (FR-009)."""

import ctypes
import gc
import time
from pathlib import Path

import torch

from contracts.tasks import MemoryReading

_STATUS = Path("/proc/self/status")


def clean(device: str) -> MemoryReading:
    """Collect garbage, empty the device's cache, give freed memory back to the system; then read what is left.

    The caller has dropped its own references before.
    """
    started_s = time.perf_counter()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()
    _trim_heap()
    cleanup_s = round(time.perf_counter() - started_s, 4)
    if device != "cuda":
        return MemoryReading(rss_bytes=_rss_bytes(), cleanup_s=cleanup_s)
    return MemoryReading(
        rss_bytes=_rss_bytes(),
        cuda_allocated_bytes=torch.cuda.memory_allocated(),
        cuda_reserved_bytes=torch.cuda.memory_reserved(),
        cuda_peak_allocated_bytes=torch.cuda.max_memory_allocated(),
        cleanup_s=cleanup_s,
    )


def forget(error: BaseException) -> None:
    """Drop the frames that *error* and its causes hold: a kept exception pins the tensors of every frame in it."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        pending += [current.__cause__, current.__context__]
        current.__traceback__ = None


def _trim_heap() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # only glibc has it
        return


def _rss_bytes() -> int:
    """Anonymous and file-backed resident memory: weights are mapped from files. 0 where the system has no /proc."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
