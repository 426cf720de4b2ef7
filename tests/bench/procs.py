"""Servers under measurement: started on free loopback ports, pinned to cores, watched, and always ended."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import psutil
from msgspec import Struct

from ops.machine.processes import die_with_parent

HOST: Final = "127.0.0.1"
# Most of it goes to the import of torch, on a core that other processes may want too.
START_S: Final = 180.0
STOP_S: Final = 10.0
# For a script, whose first answer comes after such an import.
ANSWER_S: Final = 180.0


class NotStarted(Exception):
    """A server did not start. The text holds the end of its log."""


class Cores(Struct, frozen=True):
    """The cores: *served* for the service under measurement, *rest* for brokers, stores and load generator."""

    served: frozenset[int]
    rest: frozenset[int]

    @property
    def are_apart(self) -> bool:
        return not self.served & self.rest

    def __str__(self) -> str:
        def named(cores: Iterable[int]) -> str:
            return ", ".join(map(str, sorted(cores)))

        if not self.are_apart:
            return f"everything shares core {named(self.served)}: this machine has no other"
        rest = named(self.rest)
        return f"the service runs on core {named(self.served)}; broker, store, workers and load generator on {rest}"


def apart(available: Iterable[int]) -> Cores:
    """The last of the *available* cores for the service, all others for the rest; one core is shared. Pure."""
    *others, last = sorted(available)
    return Cores(frozenset({last}), frozenset(others or {last}))


def usable_cores() -> frozenset[int]:
    """The cores that this process may use; empty where the system does not say."""
    if sys.platform == "linux":
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(psutil.cpu_count() or 1))


class Usage(Struct, frozen=True):
    """CPU seconds used since a start, and the peak resident set size in bytes."""

    cpu_s: float
    peak_bytes: int


class Watch:
    """What *served*, *brokers* and everything else on the machine use from now on, until `end`."""

    def __init__(self, served: Sequence["Server"], brokers: Sequence["Server"]) -> None:
        self._served, self._brokers = served, brokers
        self._before = self._now()

    def end(self) -> "Used":
        """What they have used since then."""
        before, now = self._before, self._now()
        served_s, brokers_s, own_s, busy_s, seconds = (b - a for a, b in zip(before, now, strict=True))
        others_s = max(0.0, busy_s - served_s - brokers_s - own_s)
        return Used(
            served_s=served_s,
            brokers_s=brokers_s,
            busy_percent=100 * served_s / seconds,
            others_percent=100 * others_s / (seconds * (psutil.cpu_count() or 1)),
            peak_bytes=sum(server.usage().peak_bytes for server in self._served),
        )

    def _now(self) -> tuple[float, float, float, float, float]:
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        guests_s = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # in `user` already
        return (
            sum(server.usage().cpu_s for server in self._served),
            sum(server.usage().cpu_s for server in self._brokers),
            own.user + own.system,
            sum(times) - idle_s - guests_s,
            time.perf_counter(),
        )


class Used(Struct, frozen=True, kw_only=True):
    """CPU seconds of the service and its brokers, and how busy the service kept one core.

    *others_percent* is how much of the whole machine all else took meanwhile: its noise, and the kernel's part.
    """

    served_s: float
    brokers_s: float
    busy_percent: float
    others_percent: float
    peak_bytes: int


class Server:
    """One process, with the processes that it starts."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.name = name
        self._process, self._log = process, log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def usage(self) -> Usage:
        """What the process and its children have used. The peaks of several processes are added."""
        cpu_s, peak_bytes = 0.0, 0
        parent = psutil.Process(self.pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                cpu_s += times.user + times.system
                peak_bytes += _peak_bytes(process)
        return Usage(cpu_s, peak_bytes)

    def require_running(self) -> None:
        """Raises NotStarted when the process has ended."""
        if self._process.poll() is not None:
            raise NotStarted(f"{self.name} ended with status {self._process.returncode}: {self.log[-2000:]}")

    def stop(self) -> None:
        """Ends the process and waits for its end."""
        children = []
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children(recursive=True)
        self._process.terminate()
        try:
            self._process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=STOP_S)


def _peak_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(OSError, StopIteration, ValueError):  # only Linux keeps the peak
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    return process.memory_info().rss


@contextlib.contextmanager
def server(
    name: str,
    command: Sequence[str],
    *,
    folder: Path,
    cores: frozenset[int],
    is_ready: Callable[[], bool],
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Runs *command* on *cores* until the block ends, which begins once *is_ready*. Raises NotStarted."""
    log = folder / f"{name}.log"
    started = Server(name, _run(command, log, cores, env), log)
    try:
        until_s = time.monotonic() + START_S
        while not is_ready():
            started.require_running()
            if time.monotonic() > until_s:
                raise NotStarted(f"{name} was not ready within {START_S:g} s: {started.log[-2000:]}")
            time.sleep(0.02)
        yield started
    finally:
        started.stop()


class Script(Server):
    """A process that answers lines on its output to lines on its input."""

    async def ask(self, line: bytes) -> bytes:
        """The line that answers *line*. Raises NotStarted when it ends, or has not answered after ANSWER_S."""
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await asyncio.to_thread(self._ask, line)
        except TimeoutError as error:
            raise NotStarted(f"{self.name} did not answer within {ANSWER_S:g} s: {self.log[-2000:]}") from error
        if not answer.endswith(b"\n"):
            self._process.wait()
            self.require_running()
        return answer

    def _ask(self, line: bytes) -> bytes:
        given, stdout = self._process.stdin, self._process.stdout
        assert given is not None
        assert stdout is not None
        try:
            given.write(line + b"\n")
            given.flush()
        except BrokenPipeError:
            return b""
        return stdout.readline()

    def stop(self) -> None:
        super().stop()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # the rest of its input, which it no longer reads
                    pipe.close()


@contextlib.contextmanager
def script(
    name: str,
    command: Sequence[str],
    *,
    folder: Path,
    cores: frozenset[int],
    env: Mapping[str, str] | None = None,
) -> Iterator[Script]:
    """Runs *command* on *cores* until the block ends. The script may be asked at once."""
    log = folder / f"{name}.log"
    started = Script(name, _run(command, log, cores, env, pipes=True), log)
    try:
        yield started
    finally:
        started.stop()


def _run(
    command: Sequence[str], log: Path, cores: frozenset[int], env: Mapping[str, str] | None, *, pipes: bool = False
) -> "subprocess.Popen[bytes]":
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else output,
            stderr=output,
            env=dict(env) if env is not None else None,
            preexec_fn=partial(_settle, cores, os.getpid()) if sys.platform == "linux" else None,
        )


def _settle(cores: frozenset[int], parent_pid: int) -> None:
    os.sched_setaffinity(0, cores)
    die_with_parent(parent_pid)


def listens(port: int, *, greets: bytes = b"") -> bool:
    """Whether a process accepts connections on *port*, and greets with *greets*."""
    try:
        with socket.create_connection((HOST, port), timeout=0.5) as connection:
            return connection.recv(len(greets)) == greets if greets else True
    except OSError:
        return False
