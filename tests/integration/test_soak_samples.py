"""What `make soak` samples, on real processes."""

import asyncio
import os
import sys
from collections import Counter
from pathlib import Path

from contracts.settings import Catalog
from ops.nats.link import NatsLink
from ops.nats.provisioning import wanted
from tests.drills.soak_samples import Sampler
from tests.kit.support import KEEP_S, command_line, eventually_sync


async def test_a_process_counts_once_as_what_it_was_last(link: NatsLink, catalog: Catalog, tmp_path: Path) -> None:
    """Between its fork and its exec, a new process has the command line of the one that started it."""
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    lane = os.fork()
    if lane == 0:
        os.close(writer)
        os.read(reader, 1)
        program = f"import os; os.read({reader}, 1)"
        os.execv(sys.executable, [sys.executable, "-c", program, "--name", "late-0"])
    try:
        sampler = Sampler(os.getpid(), link, wanted(catalog, keep_s=KEEP_S), tmp_path)
        await sampler.take(0)
        early = sampler.processes()
        os.write(writer, b"x")
        eventually_sync(lambda: "--name late-0" in command_line(lane))
        await sampler.take(0)
    finally:
        os.close(writer)
        os.close(reader)
        await asyncio.to_thread(os.waitpid, lane, 0)
    assert early["late-0"] == 0
    (what,) = early - sampler.processes()
    assert sampler.processes() == early - Counter([what]) + Counter(["late-0"])
