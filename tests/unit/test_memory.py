"""Memory probes on real processes."""

import os
import subprocess
import sys

import psutil
import pytest

from ops.memory import rss_bytes
from tests.support import eventually_sync

MIB = 1024 * 1024


def test_rss_grows_by_what_is_written_and_shrinks_when_it_is_released() -> None:
    before = rss_bytes(os.getpid())
    held = bytearray(os.urandom(64 * MIB))
    during = rss_bytes(os.getpid())
    del held
    assert 60 * MIB < during - before < 140 * MIB
    assert rss_bytes(os.getpid()) < during - 60 * MIB


def test_rss_is_what_the_system_counts_less_shared_memory() -> None:
    assert rss_bytes(os.getpid()) <= psutil.Process().memory_info().rss + MIB


def test_a_process_that_ended_has_no_rss() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    zombie = psutil.Process(child.pid)
    eventually_sync(lambda: zombie.status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(ProcessLookupError):
        rss_bytes(child.pid)
    child.wait()
    with pytest.raises(ProcessLookupError):
        rss_bytes(child.pid)
