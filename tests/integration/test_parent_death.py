"""A child process learns of the death of its parent even while it is being started."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.support import all_end, eventually_sync

# `warmlane up`, whose child stands still before or after it has asked for the signal, until its parent is dead
PARENT = """
import asyncio, os, sys, time
from pathlib import Path
from ops.machine import processes

place, marker = sys.argv[1], Path(sys.argv[2])
ask = processes.die_with_parent

def stand_still(parent):
    if place == "after":
        ask(parent)
    marker.with_suffix(".part").write_text(str(os.getpid()))
    marker.with_suffix(".part").rename(marker)
    while os.getppid() == parent:
        time.sleep(0.01)
    if place == "before":
        ask(parent)

async def main():
    processes.die_with_parent = stand_still
    with processes.asked_to_end():
        log = marker.with_name("log")
        await processes.Process("child", ["sleep", "600"], log_file=log, on_death=lambda *_: None).run()

asyncio.run(main())
"""


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_parent_that_is_killed_between_fork_and_exec_takes_its_child_with_it(place: str, tmp_path: Path) -> None:
    """There the child still has the parent's handler of SIGTERM, which does nothing in a child."""
    marker = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", PARENT, place, str(marker)]) as parent:
        try:
            eventually_sync(marker.exists)
        finally:
            parent.kill()
    child = int(marker.read_text())
    try:
        all_end([child])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
