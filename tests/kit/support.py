"""What several tests need: a real nats-server, free ports, and waiting for a condition instead of for a time."""

import asyncio
import atexit
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

from filelock import FileLock

from lane_worker.forking.fork_server import FORK_SERVER, host_environment
from ops.nats.access import ROLES, password_variable
from ops.nats.server import find_nats_server, nats_conf
from tests.kit.reaper import of_the_run

T = TypeVar("T")


# Below the ephemeral port range. Tests make thousands of outgoing connections, and one of them could take a port
# between our look and the server's start. Each pytest process has its own part of this range.
PORTS: Final = range(20_000, 32_000)
PORTS_PER_PROCESS: Final = 1_500
# For clients of plain HTTP. By default httpx loads all CA certificates for each new client.
NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
# How long the servers of tests keep what has ended.
KEEP_S: Final = 3_600.0
# After this time something is broken. On a busy machine, starting a gateway once took 25 s; others are slower.
BOUND_S: Final = 120.0
# as `tests.kit.rogue_host.COMMAND`, without its import of torch
ROGUE_HOST: Final = (sys.executable, "-m", "tests.kit.rogue_host")
# The variable by which the processes of pytest-xdist know the `shared_folder`.
SHARED_FOLDER: Final = "TESTS_SHARED_FOLDER"
_next_ports: dict[int, Iterator[int]] = {}


def free_port() -> int:
    """A port of the loopback that nothing listens on, and that this process was not given before."""
    pid = os.getpid()
    if pid not in _next_ports:
        number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        first = PORTS.start + number * PORTS_PER_PROCESS % len(PORTS)
        mine = range(first, first + PORTS_PER_PROCESS)
        start = pid % len(mine)  # a test's child process has the same part, but begins elsewhere in it
        _next_ports[pid] = itertools.cycle([*mine[start:], *mine[:start]])
    for port in itertools.islice(_next_ports[pid], PORTS_PER_PROCESS):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError(f"none of {PORTS_PER_PROCESS} ports is free")


async def eventually(look: Callable[[], Awaitable[T]], *, within_s: float = BOUND_S) -> T:
    """The first true value of *look*; fails when there is none *within_s*. A bound, not a pause."""
    deadline_s = time.monotonic() + within_s
    while True:
        value = await look()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s} s: {look}")
        await asyncio.sleep(0.02)


def eventually_sync(look: Callable[[], T], *, within_s: float = BOUND_S, every_s: float = 0.02) -> T:
    """As `eventually`, for tests without an event loop. *every_s* is longer where a look slows other processes down."""
    deadline_s = time.monotonic() + within_s
    while True:
        value = look()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s} s: {look}")
        time.sleep(every_s)  # between two looks, not in their place


class NatsServer:
    """A real nats-server on a free port, with a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder, self.options = folder, options
        self.port = free_port()
        self.address = f"nats://127.0.0.1:{self.port}"
        """For processes, which find the password of their role in `clean_environment`."""
        self.url = as_admin(self.address)
        """For tests."""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, again on the same folder and port after `kill`."""
        command = [str(find_nats_server()), "-c", str(nats_conf()), "-a", "127.0.0.1", "-p", str(self.port)]
        log = (self._folder / "nats.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [*command, "-sd", str(self._folder), *self.options], stdout=log, stderr=log, env=clean_environment()
            )
        eventually_sync(self._answers)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: it answers nobody, and its connections stay open."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def copy_store(self, to: Path) -> None:
        """Copies a consistent snapshot of its store to the folder *to*."""
        self.pause()
        shutil.copytree(self._store, to)
        self.go_on()

    def lose_tail(self, copy: Path) -> None:
        """kill -9, and a start with no more than *copy* holds, as after a power cut."""
        self.kill()
        shutil.rmtree(self._store)
        shutil.copytree(copy, self._store)
        self.start()

    @property
    def _store(self) -> Path:
        return self._folder / "jetstream"

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(timeout=BOUND_S)


def settings_file(folder: Path, **windows_s: float) -> Path:
    """The packaged settings with other windows, in a file."""
    text = resources.files("contracts").joinpath("inference_settings.json").read_text()
    settings: dict[str, Any] = json.loads(text)
    settings["windows"] |= windows_s
    path = folder / "settings.json"
    path.write_text(json.dumps(settings))
    return path


def reporting_file(folder: Path, *models: str) -> Path:
    """The packaged settings with the enforcement `report` for *models*, in a file."""
    path = settings_file(folder)
    settings = json.loads(path.read_text())
    for model in models:
        settings["models"][model]["enforcement"] = "report"
    path.write_text(json.dumps(settings))
    return path


def is_running(pid: int) -> bool:
    """Whether *pid* is a process that is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def all_end(pids: Iterable[int], *, within_s: float = BOUND_S) -> None:
    """Returns when none of *pids* runs any more. Raises AssertionError that names those that do and where they wait."""
    pids = list(pids)
    try:
        eventually_sync(lambda: not any(is_running(pid) for pid in pids), within_s=within_s)
    except AssertionError as error:
        left = [f"{pid} ({_waits_in(pid)}): {command_line(pid)}" for pid in pids if is_running(pid)]
        raise AssertionError(f"after {within_s:g} s there still are: " + "; ".join(left)) from error


def _waits_in(pid: int) -> str:
    """The kernel functions in which the threads of *pid* wait."""
    with contextlib.suppress(OSError):
        return ", ".join(sorted({(task / "wchan").read_text() for task in Path(f"/proc/{pid}/task").iterdir()}))
    return "gone"


def children_of(pid: int) -> list[int]:
    """The processes below *pid*, however deep."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if int(fields[1]) == parent:
                    found.append(int(entry.name))
                    todo.append(int(entry.name))
    return found


def command_line(pid: int) -> str:
    """The command line of *pid*, words separated by blanks; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def clean_environment() -> dict[str, str]:
    """The environment of a process under test: none of the machine's own settings, and the passwords of the servers
    under test."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WARMLANE_", "MKL_"))}
    return clean | {password_variable(role): f"pw-{role}" for role in ROLES}


def shared_forks() -> dict[str, str]:
    """The variable that gives the workers of all tests one fork server: torch is imported once for all.

    Tests of how a worker starts, and of what that costs, do without it.
    """
    return {"WARMLANE_FORK_SERVER": fork_server_at(FORK_SERVER)}


@cache
def fork_server_at(command: tuple[str, ...]) -> str:
    """The socket of a shared fork server that *command* starts; it ends with the tests."""
    return server_at(command, host_environment(os.environ))


def server_at(command: tuple[str, ...], environment: Mapping[str, str]) -> str:
    """The socket of the process that *command* starts: one for all pytest processes of a run (see `shared_folder`).

    The socket exists when this returns. Until then this blocks the event loop of the caller, if there is one.
    """
    folder = shared_folder()
    path = folder / hashlib.sha256(repr(command).encode()).hexdigest()[:12]
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            return str(path)
        log = path.with_suffix(".log")
        with log.open("wb") as output:
            of_all = {**environment, **of_the_run()}
            process = subprocess.Popen([*command, str(path)], stdout=output, stderr=output, env=of_all)
        path.with_suffix(".pid").write_text(str(process.pid))

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            return path.exists()

        eventually_sync(answers, within_s=300)
    return str(path)


@cache
def shared_folder() -> Path:
    """The folder in which the processes of `server_at` have their sockets. A pytest process uses the folder of the one
    that started it, or makes a new one. This process removes its new folder at exit, and kills the processes in it."""
    given = os.environ.get(SHARED_FOLDER)
    if given:
        return Path(given)
    folder = Path(tempfile.mkdtemp(prefix="warmlane-tests-"))

    def end() -> None:
        for file in folder.glob("*.pid"):
            pid = int(file.read_text())
            if str(folder) in command_line(pid):  # the pid was not reused
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return folder


def whole_lines(text: str) -> str:
    """*text* of a log without its last line, if that is not complete: a reader may see half of a single write."""
    return text[: text.rfind("\n") + 1]


def logged_in(log: Path) -> list[dict[str, Any]]:
    """The lines of *log* that are JSON, whole ones only."""
    return [json.loads(line) for line in whole_lines(log.read_text()).splitlines() if line.startswith("{")]


def fork_servers_of(log: Path) -> list[int]:
    """The fork servers that the worker with this *log* has had, the newest last. Fork servers from a shared one are not
    below the worker."""
    return [line["pid"] for line in logged_in(log) if line["event"] == "fork_server_started"]


def below(pid: int, logs: Path) -> list[int]:
    """The processes below *pid*, and the fork servers and hosts of the workers with a log in the folder *logs*."""
    found = {*children_of(pid)}
    for server in [server for log in logs.glob("*.log") for server in fork_servers_of(log) if is_running(server)]:
        found |= {server, *children_of(server)}
    return sorted(found)


def require_sound(log: str) -> None:
    """Asserts by *log* that nats-server denied the process nothing, and that no watch of the records missed one."""
    found = [line for line in log.splitlines() if '"nats_denied"' in line or '"record_missed"' in line]
    assert not found, found


def as_admin(urls: str) -> str:
    """*urls* of servers under test, with the user `admin`, who may do everything."""
    return ",".join(url.replace("://", "://admin:pw-admin@", 1) for url in urls.split(","))
