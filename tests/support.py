"""What several tests need: a real nats-server, free ports, and waiting for a condition instead of for a time."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ops.nats_server import find_nats_server, nats_conf

T = TypeVar("T")


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def eventually(look: Callable[[], Awaitable[T]], *, within_s: float = 20.0) -> T:
    """The first true value of *look*; fails when there is none *within_s*. A bound, not a pause."""
    deadline_s = time.monotonic() + within_s
    while True:
        value = await look()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s} s: {look}")
        await asyncio.sleep(0.02)


def eventually_sync(look: Callable[[], T], *, within_s: float = 20.0) -> T:
    """As `eventually`, for tests without an event loop."""
    deadline_s = time.monotonic() + within_s
    while True:
        value = look()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s} s: {look}")
        time.sleep(0.02)  # between two looks, not in their place


class NatsServer:
    """A real nats-server on a free port, with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, again on the same folder and port after `kill`."""
        command = [str(find_nats_server()), "-c", str(nats_conf()), "-a", "127.0.0.1", "-p", str(self.port)]
        log = (self._folder / "nats.log").open("ab")
        with log:
            self._process = subprocess.Popen([*command, "-sd", str(self._folder)], stdout=log, stderr=log)
        eventually_sync(self._answers)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.2) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(timeout=20)


def settings_file(folder: Path, **windows_s: float) -> Path:
    """The packaged settings with other windows, in a file."""
    text = resources.files("contracts").joinpath("inference_settings.json").read_text()
    settings: dict[str, Any] = json.loads(text)
    settings["windows"] |= windows_s
    path = folder / "settings.json"
    path.write_text(json.dumps(settings))
    return path


def is_running(pid: int) -> bool:
    """Whether *pid* is a process that is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


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
    """The environment of a process under test: none of the machine's own WARMLANE_ settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WARMLANE_")}
