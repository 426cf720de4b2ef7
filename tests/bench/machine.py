"""The machine of a measurement, in words."""

import platform
from pathlib import Path

import psutil


def machine() -> str:
    """The processor, its cores and the memory."""
    return f"{_cpu()}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB of memory"


def system() -> str:
    """The operating system and Python."""
    return f"{platform.system()} {platform.release()}, Python {platform.python_version()}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()
