"""How a pipeline host ends: cancels, time limits, deaths, its slot, children that break the protocol (design §7)."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Cancelled, StepFinished
from lane_worker.forking.outcome import HostLost, LoadTimedOut, Lost, SlotTaken, TimedOut
from tests.kit.support import all_end, eventually, is_running
from tests.kit.workshop import (
    CATALOG,
    Workshop,
    files,
    finished,
    ignore,
    parameters,
    request,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


# Cancelling


async def test_a_cancel_stops_within_the_step(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host()
    pid = host.pid
    outcome = await host.generate(request(tmp_path), lambda progress: host.cancel(progress.task_id))
    assert isinstance(outcome, Cancelled)
    assert outcome.memory.rss_bytes > 0
    assert files(tmp_path) == []
    assert host.pid == pid


async def test_a_cancelled_host_runs_the_next_task(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host(step_seconds=0.5)  # a busy machine may take as long to cancel
    seen: list[int] = []

    def cancel_at_one(progress: StepFinished) -> None:
        seen.append(progress.step)
        if progress.step == 1:
            host.cancel("another")  # not the task that runs: no effect
            host.cancel(progress.task_id)

    assert isinstance(await host.generate(request(tmp_path), cancel_at_one), Cancelled)
    assert seen in ([0, 1], [0, 1, 2])  # at most the running step is finished
    host.cancel("task")  # the task has ended: no effect on the next one of this name
    await finished(host, request(tmp_path))


async def test_a_cancelled_caller_leaves_no_child(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host()
    started = asyncio.Event()
    running = asyncio.create_task(host.generate(request(tmp_path), lambda _: started.set()))
    await started.wait()
    pid = host.pid
    assert pid is not None
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.to_thread(all_end, [pid])


# Time limits


async def test_a_step_that_overruns_is_cancelled(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host(step_s=3.0)
    outcome = await host.generate(request(tmp_path), ignore)
    assert isinstance(outcome, TimedOut)
    assert outcome.limit == "step_s"
    assert outcome.memory is not None
    assert host.pid is not None


async def test_an_inference_that_overruns_is_cancelled(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host(step_seconds=2.0, total_s=3.0)
    outcome = await host.generate(request(tmp_path), ignore)
    assert isinstance(outcome, TimedOut)
    assert outcome.limit == "total_s"
    assert outcome.memory is not None


async def test_a_host_that_hangs_is_killed_and_its_health_ages(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host(step_s=2.5)
    pid = host.pid
    assert pid is not None
    ages: list[float] = []

    async def watch_health() -> None:
        while True:
            ages.append(host.health_age_s)
            await asyncio.sleep(0.05)

    def hang(_progress: StepFinished) -> None:
        os.kill(pid, signal.SIGSTOP)

    watcher = asyncio.create_task(watch_health())
    outcome = await host.generate(request(tmp_path), hang)
    watcher.cancel()
    assert outcome == TimedOut("task", "step_s", 2.5, None)
    assert host.pid is None
    await asyncio.to_thread(all_end, [pid])
    assert max(ages) > 2.5  # no answer came while the host was stopped

    assert (await host.start()).unfinished is not None
    await host.load(CATALOG.models["phr00t"])


async def test_a_load_that_overruns_is_killed(workshop: Workshop) -> None:
    host = workshop.host()
    await host.start()
    with pytest.raises(LoadTimedOut, match=r"did not load its model within 0\.001 s"):
        await host.load(workshop.entry("anisora", load_s=0.001))
    assert host.pid is None


async def test_pings_are_answered_during_an_inference(hosts: dict[str, Host], tmp_path: Path) -> None:
    host = hosts["anisora"]
    # seconds of work during which a thread wants the interpreter's lock
    long = parameters("anisora", width=128, height=128, num_frames=33)
    running = asyncio.create_task(finished(host, request(tmp_path, long)))
    answers, last_s = 0, host.health_age_s
    while not running.done():
        await asyncio.sleep(0.02)
        age_s = host.health_age_s
        answers += age_s < last_s
        last_s = age_s
    await running
    assert answers > 0


# Deaths


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_the_death_of_a_host_is_an_outcome_and_the_host_starts_again(
    workshop: Workshop, tmp_path: Path, number: signal.Signals
) -> None:
    host = await workshop.slow_host()
    first = host.pid
    assert first is not None

    def kill(_progress: StepFinished) -> None:
        os.kill(first, number)

    outcome = await host.generate(request(tmp_path, task_id="lost-task"), kill)
    assert isinstance(outcome, Lost)
    assert outcome.task_id == "lost-task"
    assert host.pid is None
    assert files(tmp_path) == []
    with pytest.raises(HostLost, match="start it first"):
        await host.generate(request(tmp_path), ignore)

    successor = workshop.host()
    ready = await successor.start()
    assert ready.pid == successor.pid != first
    assert ready.unfinished is not None
    assert (ready.unfinished.pid, ready.unfinished.task_id) == (first, "lost-task")
    assert (ready.unfinished.model, ready.unfinished.attempt) == ("phr00t", 1)
    await successor.load(CATALOG.models["phr00t"])
    await finished(successor, request(tmp_path))
    await successor.close()

    assert (await host.start()).unfinished is None


async def test_the_partial_file_of_a_killed_host_is_removed(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host()
    part = tmp_path / "task.mp4.part"

    def kill(_progress: StepFinished) -> None:
        part.write_bytes(b"half a video")
        os.kill(host.pid or 0, signal.SIGKILL)

    assert isinstance(await host.generate(request(tmp_path), kill), Lost)
    assert not part.exists()


def ignores(pid: int, number: signal.Signals) -> bool:
    """Whether process *pid* ignores signal *number*."""
    (mask,) = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


async def test_ctrl_c_in_a_terminal_ends_neither_host_nor_fork_server(
    hosts: dict[str, Host], module_workshop: Workshop, tmp_path: Path
) -> None:
    host = hosts["phr00t"]
    assert host.pid is not None
    assert module_workshop.fork_server.pid is not None
    assert os.getpgid(module_workshop.fork_server.pid) != os.getpgid(0)
    os.kill(host.pid, signal.SIGINT)
    os.kill(module_workshop.fork_server.pid, signal.SIGINT)
    await finished(host, request(tmp_path))
    assert is_running(module_workshop.fork_server.pid)
    assert ignores(module_workshop.fork_server.pid, signal.SIGINT)


PARENT = """
import asyncio, json, os, sys
from pathlib import Path
import msgspec
from contracts.settings import load_settings
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Generate
from ops.telemetry.logs import configure_logging

async def main():
    configure_logging("test", level="error")  # the test reads what is printed
    folder = Path(sys.argv[1])
    model = load_settings().catalog("tiny").models["phr00t"]
    host = Host(slot="cpu-0", lock_dir=folder / "locks", models_dir=folder / "models", step_seconds=600)
    await host.start()
    await host.load(model)
    request = msgspec.json.decode(sys.stdin.readline(), type=Generate)
    rss = [line for line in open("/proc/self/status") if line.startswith("VmRSS")][0].split()[1]
    def report(progress):
        print(json.dumps([host.pid, host._fork_server.pid, "torch" in sys.modules, int(rss)]), flush=True)
    await host.generate(request, report)

asyncio.run(main())
"""


async def test_a_killed_worker_leaves_no_process_and_no_lock(workshop: Workshop, tmp_path: Path) -> None:
    worker = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", PARENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(msgspec.json.encode(request(tmp_path)) + b"\n")
    host_pid, server_pid, has_torch, rss_kb = json.loads(await worker.stdout.readline())
    assert not has_torch
    assert rss_kb < 60 * 1024
    # a worker's own fork server ignores a terminal's Ctrl-C, as the fork of a shared one does
    assert os.getpgid(server_pid) != os.getpgid(worker.pid)
    assert ignores(server_pid, signal.SIGINT)

    worker.kill()
    try:
        await asyncio.to_thread(all_end, [host_pid, server_pid])
    finally:  # after a failure nothing else would end them
        for pid in (host_pid, server_pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    _, errors = await worker.communicate()
    assert errors == b""  # no progress bars, no warnings, no prompt

    workshop.lock_dir, lock_dir = tmp_path / "locks", workshop.lock_dir
    try:
        ready = await workshop.host().start()
    finally:
        workshop.lock_dir = lock_dir
    assert ready.unfinished is not None
    assert (ready.unfinished.pid, ready.unfinished.task_id) == (host_pid, "task")


# The slot


async def test_a_slot_serves_one_host_at_a_time(workshop: Workshop) -> None:
    holder, rival = workshop.host(), workshop.host()
    await holder.start()
    with pytest.raises(SlotTaken, match="cpu-0") as refusal:
        await rival.start(term=99)  # no leader of any term ends a lane
    assert refusal.value.holder is not None
    assert refusal.value.holder.pid == holder.pid
    assert rival.pid is None
    await holder.load(CATALOG.models["phr00t"])

    await holder.close()
    assert holder.pid is None
    await rival.start()


async def test_closing_leaves_no_process(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host()
    host._owns_fork_server, host._fork_server = True, ForkServer()  # not the shared one
    started = asyncio.Event()
    running = asyncio.create_task(host.generate(request(tmp_path), lambda _: started.set()))
    await started.wait()
    pid = host.pid
    assert pid is not None
    await host.close()
    assert isinstance(await running, Lost)
    assert not is_running(pid)
    await host.close()


# Children that misbehave

HASTY = Workshop.entry("phr00t", step_s=0.3, load_s=0.3)


@pytest_asyncio.fixture(loop_scope="module")
async def rogue(tmp_path: Path) -> AsyncIterator[Callable[[str], Host]]:
    """A function that makes hosts; the name of a slot says how its child misbehaves."""
    server = ForkServer([sys.executable, "-m", "tests.e2e.rogue_fork_server"])
    hosts: list[Host] = []

    def make(slot: str) -> Host:
        hosts.append(Host(slot=slot, lock_dir=tmp_path, models_dir=tmp_path, fork_server=server))
        return hosts[-1]

    yield make
    for host in hosts:
        await host.close()
    await server.close()


@pytest.mark.parametrize(
    ("slot", "reason"),
    [
        ("cpu-garbage", "broke the protocol"),
        ("cpu-endless", "claims 4294967295 bytes"),
        ("cpu-truncated", "the pipeline host died"),
    ],
)
async def test_nonsense_on_the_pipe_ends_the_host(
    rogue: Callable[[str], Host], slot: str, reason: str, tmp_path: Path
) -> None:
    host = rogue(slot)
    pid = (await host.start()).pid
    await host.load(HASTY)
    outcome = await host.generate(request(tmp_path), ignore)
    assert isinstance(outcome, Lost)
    assert reason in outcome.reason
    assert not is_running(pid)
    pid = (await host.start()).pid
    await host.load(HASTY)
    with pytest.raises(HostLost, match=reason):
        await host.unload()
    assert not is_running(pid)


async def test_a_silent_host_is_killed(rogue: Callable[[str], Host], tmp_path: Path) -> None:
    host = rogue("cpu-silent")
    pid = (await host.start()).pid
    await host.load(HASTY)
    assert await host.generate(request(tmp_path), ignore) == TimedOut("task", "step_s", 0.3, None)
    assert not is_running(pid)
    pid = (await host.start()).pid
    await host.load(HASTY)
    with pytest.raises(LoadTimedOut, match="did not load its model"):
        await host.load(HASTY)
    assert not is_running(pid)


async def test_closing_a_deaf_host_kills_it(rogue: Callable[[str], Host]) -> None:
    host = rogue("cpu-silent")
    pid = (await host.start()).pid
    await host.close()
    assert not is_running(pid)


async def test_a_fork_server_that_dies_is_reported(rogue: Callable[[str], Host]) -> None:
    with pytest.raises(HostLost, match="the fork server could not start a pipeline host"):
        await rogue("cpu-refused").start()


async def test_a_fork_server_that_the_kernel_kills_is_reported_with_what_to_do(rogue: Callable[[str], Host]) -> None:
    with pytest.raises(HostLost, match=r"it was killed \(SIGKILL\), .*: the container's memory limit"):
        await rogue("cpu-out-of-memory").start()


async def test_a_dead_fork_server_is_replaced(rogue: Callable[[str], Host]) -> None:
    host = rogue("cpu-silent")
    first = (await host.start()).pid
    server = host._fork_server
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await eventually(lambda: asyncio.sleep(0, server.pid is None))
    assert host.pid == first  # the host itself lives on
    assert (await host.start()).pid != first
    assert not is_running(first)
