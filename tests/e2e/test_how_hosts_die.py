"""What a worker logs about a pipeline host that was killed by a signal, or by the kernel because memory ran out."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host import Host
from tests.kit.cgroups import small_cgroup
from tests.kit.support import eventually
from tests.kit.workshop import Workshop

LIGHT = (sys.executable, "-m", "tests.e2e.light_fork_server")
MODEL = Workshop.entry("phr00t")
# The worker, its fork server and an empty host take 130 MB. Only the host grows, so it is the largest at the limit.
LIMIT_BYTES = 400 << 20


def host_on(slot: str, server: ForkServer, folder: Path) -> Host:
    return Host(slot=slot, lock_dir=folder, models_dir=folder, fork_server=server)


async def died(host: Host, doing: Awaitable[object]) -> str:
    """What the log says of *host*, which dies after *doing*, while the worker waits for no message from it."""
    with capture_logs() as lines:
        await doing
        await eventually(lambda: asyncio.sleep(0, any(line["event"] == "pipeline_host_died" for line in lines)))
    assert host.pid is None
    return next(str(line["error"]) for line in lines if line["event"] == "pipeline_host_died")


@pytest.fixture
async def server() -> AsyncIterator[ForkServer]:
    server = ForkServer(LIGHT)
    yield server
    await server.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_the_signal_that_ended_a_host_without_a_task_is_logged(
    number: signal.Signals, server: ForkServer, tmp_path: Path
) -> None:
    host = host_on("cpu-0", server, tmp_path)
    pid = (await host.start()).pid
    said = await died(host, asyncio.to_thread(os.kill, pid, number))
    assert said == f"the pipeline host was killed by signal {number.value} ({number.name})"


async def test_the_end_of_a_host_that_is_to_end_is_not_logged(server: ForkServer, tmp_path: Path) -> None:
    with capture_logs() as lines:
        for end in ("close", "kill"):
            host = host_on("cpu-0", server, tmp_path)
            await host.start()
            await getattr(host, end)()
        dead = host_on("cpu-0", server, tmp_path)  # its end would be logged after any line about the others
        pid = (await dead.start()).pid
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: asyncio.sleep(0, any(line.get("pid") == pid and "error" in line for line in lines)))
    assert [line["pid"] for line in lines if line["event"] == "pipeline_host_died"] == [pid]


async def test_without_its_fork_server_an_end_has_no_cause(server: ForkServer, tmp_path: Path) -> None:
    host = host_on("cpu-0", server, tmp_path)
    pid = (await host.start()).pid
    await server.close()
    assert await died(host, asyncio.to_thread(os.kill, pid, signal.SIGKILL)) == "the pipeline host died"


def test_a_host_at_the_memory_limit_of_its_cgroup_is_named_with_it(tmp_path: Path) -> None:
    with small_cgroup(LIMIT_BYTES) as cgroup:
        done = subprocess.run(
            [sys.executable, "-m", "tests.e2e.out_of_memory", str(cgroup), str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
    said = (
        "the pipeline host was killed by the kernel (signal 9, SIGKILL): the memory limit of 0.4 GiB of this container "
        "was reached; raise it, or serve smaller videos"
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("the pipeline host")] == [said, said], done
