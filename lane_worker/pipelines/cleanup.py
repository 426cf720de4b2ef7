"""What happens after every inference and failed load (FR-008), and the memory reading that proves it (FR-009).

And what happens between two models: a pipeline is `Watched`, dropped, and its memory released (FR-002).
"""

import contextlib
import ctypes
import gc
import math
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from contracts.memory import MemoryReading

_STATUS = Path("/proc/self/status")
CUDA_FIGURES: Final = {
    "cuda_allocated_bytes": "allocated_bytes.all.current",
    "cuda_reserved_bytes": "reserved_bytes.all.current",
    "cuda_peak_allocated_bytes": "allocated_bytes.all.peak",
    "cuda_peak_reserved_bytes": "reserved_bytes.all.peak",
    "cuda_inactive_split_bytes": "inactive_split_bytes.all.current",
    "cuda_alloc_retries": "num_alloc_retries",
    "cuda_ooms": "num_ooms",
}
"""Fields of a `MemoryReading`, and what `torch.cuda.memory_stats` calls them."""

_HELD: Final = ("RssAnon", "RssFile")
_peak_is_of_now = False

# A warm pipeline keeps up to this much of the heap free between two tasks. The next task takes it at once; faulting it
# in again costs a tiny pipeline a tenth of its time (docs/benchmarks/notes.md). More than this goes back to the system.
HEAP_KEPT_BYTES: Final = 64_000_000


_MALLINFO2: Final = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)


class _Mallinfo2(ctypes.Structure):
    """glibc's struct of this name; `fordblks` is what is free in the heap, in bytes."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO2)


def clean(device: str, *, heap_kept_bytes: int = 0) -> MemoryReading:
    """Collect garbage, empty the device's cache, give freed memory back to the system; then read what is left.

    The caller must have dropped its own references. Up to *heap_kept_bytes* may stay free in the heap.
    """
    started_s = time.perf_counter()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()
    _trim_heap(heap_kept_bytes)
    cleanup_s = round(time.perf_counter() - started_s, 4)
    rss_bytes, peak_bytes = _rss()
    figures = cuda_figures(torch.cuda.memory_stats()) if device == "cuda" else {}
    return MemoryReading(
        rss_bytes=rss_bytes,
        rss_peak_bytes=max(rss_bytes, peak_bytes) if _peak_is_of_now else None,
        cleanup_s=cleanup_s,
        **figures,
    )


def begin(device: str) -> None:
    """Resets peaks and counts for the next reading. Call it before a load, and before an inference."""
    global _peak_is_of_now
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set, and nothing else
        _peak_is_of_now = True
    except OSError:  # no /proc, or one that may not be written
        _peak_is_of_now = False
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.reset_accumulated_memory_stats()


def cuda_figures(stats: Mapping[str, int]) -> dict[str, int | None]:
    """The CUDA figures of a reading out of `torch.cuda.memory_stats()`, None for one that it lacks. Pure."""
    return {name: stats.get(key) for name, key in CUDA_FIGURES.items()}


def release(device: str) -> MemoryReading:
    """As `clean`, after a pipeline was dropped: nothing stays for a next run to reuse."""
    gc.collect()  # `clean` collects a second time: what the finalizers of this round let go of
    if device == "cuda":
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()  # before the cache is emptied: they lie in it
        torch.accelerator.empty_host_cache()  # pinned memory of offloaded weights
    return clean(device)


class Watched:
    """The components of a pipeline, by weak references: they show what outlived it, and keep nothing alive."""

    def __init__(self, pipeline: Any) -> None:
        self._gone: list[tuple[str, Callable[[], bool]]] = []
        for name, component in pipeline.components.items():
            self._watch(name, component)
            if isinstance(component, torch.nn.Module):
                # watch their memory too: one kept tensor, or a view of it, pins memory without the module
                for tensor in (*component.parameters(), *component.buffers()):
                    self._gone.append((name, StorageWeakRef(tensor.untyped_storage()).expired))

    def _watch(self, name: str, component: Any) -> None:
        try:
            reference = weakref.ref(component)
        except TypeError:  # a number or None
            return
        self._gone.append((name, lambda: reference() is None))

    def still_alive(self) -> tuple[str, ...]:
        """The names of the components that are not gone, or not whole."""
        return tuple(dict.fromkeys(name for name, is_gone in self._gone if not is_gone()))


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


def _trim_heap(kept_bytes: int) -> None:
    libc = ctypes.CDLL(None)
    if kept_bytes and _free_in_heap_bytes(libc) <= kept_bytes:
        return
    with contextlib.suppress(AttributeError):  # only glibc has it
        libc.malloc_trim(0)


def _free_in_heap_bytes(libc: ctypes.CDLL) -> float:
    try:
        mallinfo2 = libc.mallinfo2
    except AttributeError:  # glibc before 2.33, or another C library: the figure is unknown
        return math.inf
    mallinfo2.restype = _Mallinfo2
    return int(mallinfo2().fordblks)


def _rss() -> tuple[int, int]:
    """Anonymous and file-backed resident memory, since weights are mapped from files; and its peak. 0 without /proc."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines)
    now, peak = (sum(int(fields[name].split()[0]) * 1024 for name in names) for names in (_HELD, ("VmHWM",)))
    return now, peak
