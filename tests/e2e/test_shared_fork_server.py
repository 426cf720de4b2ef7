"""One import of torch for all the workers of a machine, and nothing else in common (ADR 0018)."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from lane_worker.forking.fork_server import ForkServer, host_environment
from lane_worker.forking.host import Host
from ops.machine.fork_socket import importing
from tests.kit.support import clean_environment, eventually, is_running

LIGHT = (sys.executable, "-m", "tests.e2e.light_fork_server")
OWN = (sys.executable, "-m", "tests.e2e.rogue_fork_server")
_ACCEPTS = 0x10000  # __SO_ACCEPTCON of Linux, in the column Flags


class Shared:
    """A running shared fork server, and workers that use it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.socket = folder / "forks"
        self.process = subprocess.Popen(
            [*LIGHT, str(self.socket)], env=host_environment(clean_environment() | environment)
        )
        self._folder = folder
        self.hosts: list[Host] = []
        self.servers: list[ForkServer] = []

    def worker(self, slot: str) -> tuple[ForkServer, Host]:
        """A worker's fork server and host. Without the shared server it starts its own, whose hosts are silent."""
        server = ForkServer(OWN, shared=str(self.socket))
        host = Host(slot=slot, lock_dir=self._folder, models_dir=self._folder, fork_server=server)
        self.servers.append(server)
        self.hosts.append(host)
        return server, host

    async def end(self) -> None:
        for host in self.hosts:
            await host.close()
        for server in self.servers:
            await server.close()
        self.process.kill()
        self.process.wait()

    def has_forked(self, server: ForkServer) -> bool:
        return server.pid is not None and psutil.Process(server.pid).ppid() == self.process.pid


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Shared]:
    shared = Shared(tmp_path)
    await eventually(lambda: asyncio.sleep(0, shared.socket.exists()))
    yield shared
    await shared.end()


def umask_of(pid: int | None) -> str:
    return next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Umask:"))


async def soon(look: Callable[[], bool]) -> bool:
    return look()


def listens(path: Path) -> bool:
    """Whether a process listens at *path*. To bind it is not enough: connections are then still refused."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(line[-1] == str(path) and int(line[3], 16) & _ACCEPTS for line in lines if line[3:4] != ["Flags"])


def several_connections_to(path: Path) -> bool:
    """Whether, beside the listening socket at *path*, there is one that waits for an answer."""
    return sum(line.endswith(f" {path}") for line in Path("/proc/net/unix").read_text().splitlines()) > 1


def gone(pid: int) -> Callable[[], "asyncio.Future[bool]"]:
    return lambda: asyncio.ensure_future(asyncio.sleep(0, not is_running(pid)))


async def test_every_worker_has_a_fork_server_and_a_host_of_its_own(
    shared: Shared, capfd: pytest.CaptureFixture[str]
) -> None:
    """A worker replaces a fork server that dies, and no other worker notices. A host prints where its worker prints."""
    (first, one), (second, other) = shared.worker("cpu-1"), shared.worker("cpu-2")
    pids = [(await host.start()).pid for host in (one, other)]
    assert shared.has_forked(first)
    assert shared.has_forked(second)
    assert first.pid is not None
    assert second.pid not in (None, first.pid)
    assert os.getsid(first.pid) == first.pid
    assert [psutil.Process(pid).ppid() for pid in pids] == [first.pid, second.pid]
    printed = [line for line in capfd.readouterr().err.splitlines() if line.startswith("a host for")]
    assert sorted(printed) == ["a host for cpu-1", "a host for cpu-2"]

    os.kill(first.pid, signal.SIGKILL)
    await eventually(lambda: asyncio.sleep(0, first.pid is None))
    assert (one.pid, other.pid) == tuple(pids)
    assert (await one.start()).pid != pids[0]
    assert shared.has_forked(first)
    assert other.pid == pids[1]


async def test_the_death_of_a_shared_fork_server_ends_no_worker(shared: Shared) -> None:
    server, host = shared.worker("cpu-1")
    pid = (await host.start()).pid
    shared.process.kill()
    shared.process.wait()
    assert host.pid == pid
    assert (await host.start()).pid != pid  # the fork of the dead one still forks
    late, silent = shared.worker("cpu-silent")
    await silent.start()
    assert server.pid is not None
    assert late.pid is not None
    assert psutil.Process(late.pid).ppid() == os.getpid()  # the worker's own: the shared server did not answer


async def test_a_worker_that_is_gone_leaves_neither_fork_server_nor_host(shared: Shared) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from lane_worker.forking.host import Host\n"
        "async def main():\n"
        "    folder = Path(sys.argv[1])\n"
        "    host = Host(slot='cpu-1', lock_dir=folder, models_dir=folder)\n"
        "    await host.start()\n"
        "    print('started', host.pid, host._fork_server.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    worker = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", code, str(shared.socket.parent)],
        stdout=subprocess.PIPE,
        env=clean_environment() | {"WARMLANE_FORK_SERVER": str(shared.socket)},
    )
    assert worker.stdout is not None
    line = b""
    while not line.startswith(b"started"):  # log lines go first
        line = await worker.stdout.readline()
    host, server = map(int, line.split()[1:])
    assert psutil.Process(server).ppid() == shared.process.pid
    worker.kill()
    await worker.wait()
    for pid in (host, server):
        await eventually(gone(pid))


async def test_only_the_user_of_a_shared_fork_server_may_connect(shared: Shared) -> None:
    """The files of its forks have the usual permissions."""
    assert stat.S_IMODE(shared.socket.stat().st_mode) == 0o700
    server, host = shared.worker("cpu-1")
    await host.start()
    assert umask_of(server.pid) == umask_of(os.getpid())


async def test_a_worker_waits_for_a_shared_fork_server_that_still_imports(tmp_path: Path) -> None:
    """The worker starts its own fork server when the shared one dies meanwhile."""
    folder = tmp_path / "starting"
    folder.mkdir()
    for dies in (False, True):
        go_on = folder / f"go-on-{dies}"
        starting = Shared(folder, WARMLANE_TEST_IMPORTS_UNTIL=str(go_on))
        name = importing(starting.socket)
        await eventually(partial(soon, partial(listens, name)))
        server, host = starting.worker(f"cpu-{dies}")
        ready = asyncio.create_task(host.start())
        # the shared server holds a connection on which nothing was sent
        await eventually(partial(soon, partial(several_connections_to, name)))
        assert not starting.socket.exists()
        assert not ready.done()
        if dies:
            starting.process.kill()
        else:
            go_on.touch()
        await ready
        assert starting.has_forked(server) is not dies
        await starting.end()


async def test_a_silent_connection_delays_no_worker(shared: Shared) -> None:
    _, writer = await asyncio.open_unix_connection(shared.socket)
    server, host = shared.worker("cpu-1")
    await host.start()
    assert shared.has_forked(server)
    writer.close()
