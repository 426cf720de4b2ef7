"""What `make soak` samples, on real processes."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.settings import Catalog
from ops.nats.link import NatsLink
from ops.nats.provisioning import wanted
from tests.drills.soak_samples import Sampler
from tests.kit.support import KEEP_S, children_of, command_line, eventually_sync

# Forks a process, which becomes the lane late-0 at the first byte of input, and ends at the second.
PROGRAM = """
import os, sys
lane = os.fork()
if lane == 0:
    os.read(0, 1)
    os.execv(sys.executable, [sys.executable, "-c", "import os; os.read(0, 1)", "--name", "late-0"])
os.waitpid(lane, 0)
"""


@pytest.fixture
def up() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that runs PROGRAM. Below the tests' own process may be what tests share, and what that forks."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, bufsize=0) as up:
        yield up


async def test_a_process_counts_once_as_what_it_was_last(
    up: "subprocess.Popen[bytes]", link: NatsLink, catalog: Catalog, tmp_path: Path
) -> None:
    """Between its fork and its exec, a new process has the command line of the one that started it."""
    (lane,) = await asyncio.to_thread(eventually_sync, lambda: children_of(up.pid))
    sampler = Sampler(up.pid, link, wanted(catalog, keep_s=KEEP_S), tmp_path)
    await sampler.take(0)
    early = sampler.processes()
    assert up.stdin is not None
    up.stdin.write(b"x")
    await asyncio.to_thread(eventually_sync, lambda: "--name late-0" in command_line(lane))
    await sampler.take(0)
    assert early["late-0"] == 0
    (what,) = early - sampler.processes()
    assert sampler.processes() == early - Counter([what]) + Counter(["late-0"])
