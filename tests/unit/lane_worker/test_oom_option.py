"""`--oom-snapshots` on its way from the command line to the pipeline host, and what the host answers."""

import asyncio
import socket
import subprocess
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner

from contracts.memory import MemoryReading
from contracts.settings import load_settings
from lane_worker.forking.allocator import AllocatorMisconfigured
from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Failed, Fork, FromChild, Ready, frame
from lane_worker.forking.outcome import LoadFailed
from ops.cli import cli
from ops.commands.options import snapshotting

MODEL = load_settings().catalog("tiny").models["phr00t"]
FULL = Failed(None, "out_of_memory", "full", MemoryReading(rss_bytes=1), snapshot="/data/oom/oom-1.pickle")


class Scripted(ForkServer):
    """Forks no pipeline host: the other end of the pipe sends *answers*, and there is a process to kill."""

    def __init__(self, *answers: FromChild, stays: bool = True) -> None:
        super().__init__(shared="")
        self.request: Fork | None = None
        self._answers, self._stays = answers, stays
        self._pipe: socket.socket | None = None

    async def fork(self, request: Fork, pipe: socket.socket, exit_writer: socket.socket) -> int:
        self.request, self._pipe = request, pipe.dup() if self._stays else None
        for answer in self._answers:
            pipe.sendall(frame(answer))
        self._stand_in = await asyncio.to_thread(subprocess.Popen[bytes], ["sleep", "600"])
        return self._stand_in.pid

    def hang_up(self) -> None:
        """The pipe closes, for which the process is killed."""
        if self._pipe is not None:
            self._pipe.close()
        self._stand_in.wait()


@pytest.mark.parametrize(("kept", "arguments"), [(0, []), (3, ["--oom-snapshots", "3"])])
def test_a_worker_gets_the_snapshot_option(kept: int, arguments: list[str]) -> None:
    assert snapshotting(kept) == arguments


@pytest.mark.parametrize("command", ["up", "supervisor", "lane", "degraded"])
def test_every_command_that_starts_workers_has_the_option(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--oom-snapshots", "101"])
    assert result.exit_code == 2
    assert "101 is not in the range 0<=x<=100" in result.output


async def test_a_host_gets_the_snapshot_option(tmp_path: Path) -> None:
    forks = Scripted(Ready(1))
    host = Host(
        slot="cpu-0",
        lock_dir=tmp_path,
        models_dir=tmp_path,
        fork_server=forks,
        oom_dir=tmp_path / "oom",
        oom_snapshots=3,
    )
    await host.start()
    await asyncio.to_thread(forks.hang_up)
    await host.close()
    assert forks.request is not None
    assert (forks.request.oom_dir, forks.request.oom_snapshots) == (str(tmp_path / "oom"), 3)


async def test_the_worker_logs_where_the_snapshot_is(tmp_path: Path) -> None:
    forks = Scripted(Ready(1), FULL)
    host = Host(slot="cpu-0", lock_dir=tmp_path, models_dir=tmp_path, fork_server=forks)
    await host.start()
    with structlog.testing.capture_logs() as logs, pytest.raises(LoadFailed):
        await host.load(MODEL)
    await asyncio.to_thread(forks.hang_up)
    await host.close()
    (line,) = (line for line in logs if line["event"] == "oom_snapshot")
    assert (line["of"], line["path"]) == ("phr00t", FULL.snapshot)


async def test_a_host_that_found_another_allocator_does_not_serve(tmp_path: Path) -> None:
    """FR-010: the worker ends with this, and does not try again."""
    refusal = Failed(
        None, "inference_failed", "expandable segments are off", MemoryReading(rss_bytes=0), fatal=True, lasting=True
    )
    forks = Scripted(refusal, stays=False)
    host = Host(slot="cpu-0", lock_dir=tmp_path, models_dir=tmp_path, fork_server=forks)
    with pytest.raises(AllocatorMisconfigured, match="expandable segments are off"):
        await host.start()
    assert host.pid is None
    forks.hang_up()
