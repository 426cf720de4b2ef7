"""Which probe reads the memory of a slot, and the one for slots on the CPU."""

from pathlib import Path
from typing import Final

import psutil
import structlog

from contracts.settings import Tolerances
from ops.machine.host_memory import available_bytes, tree_bytes
from ops.machine.nvml import MEASURED, DriverUnusable, NvmlProbe, has_nvml
from ops.machine.readings import Holder, MemoryProbe, Reading

# ValueError, KeyError: another kernel words its files differently
_SYSTEM_ERRORS: Final = (OSError, ValueError, KeyError, psutil.Error)

log = structlog.get_logger("memory_probe")


class RssProbe:
    """The resident memory of the pipeline host and of the processes below it. A process that is gone holds nothing."""

    name: Final = "rss"

    def __init__(self, tolerances: Tolerances = MEASURED) -> None:
        self.absolute_bytes = tolerances.host_bytes
        self.poll_s = 0.1
        self.deadline_s = 5.0
        self.trouble = ""

    def read(self, pid: int | None) -> Reading | None:
        self.trouble = ""
        try:
            return Reading(used_bytes=0 if pid is None else tree_bytes(pid), free_bytes=available_bytes())
        except _SYSTEM_ERRORS as error:
            self.trouble = repr(error)
            log.warning("memory_unreadable", pid=pid, error=self.trouble)
            return None

    def holders(self) -> tuple[Holder, ...]:
        return ()  # what counts here is the pipeline host and the processes below it


def probe_for(slot: str, tolerances: Tolerances = MEASURED) -> MemoryProbe | None:
    """The probe of *slot*; None where there is none: no NVML on this machine, or a system without /proc.

    Where NVML is there but fails, for example because the driver is not loaded (yet), the slot has a probe all the
    same. That probe has no readings, and proves nothing.
    """
    if slot.startswith("cpu-"):
        return RssProbe(tolerances) if Path("/proc/self/status").exists() else None
    try:
        return NvmlProbe(slot, tolerances) if has_nvml() else None
    except DriverUnusable:
        return NvmlProbe(slot, tolerances)
