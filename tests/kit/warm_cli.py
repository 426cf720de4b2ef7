"""`warmlane` commands that start in milliseconds.

`python -m tests.kit.warm_cli SOCKET` imports them once, and forks.
Imports took a second for each of a hundred gateways: a tenth of the time of all tests. A fork runs `ops.cli.main` as
the console script does, with arguments, environment and output files of its own. Whole systems (`tests.kit.system`),
and tests of how a process starts or what that costs, start the real script.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any, Final
from unittest.mock import patch

from tests.kit.support import clean_environment, server_at

PRELOADED: Final = (
    "gateway.command",
    "lane_worker.command",
    "degraded_worker.command",
    "ops.commands.keys",
    "ops.commands.up.command",
    # what a gateway imports as it starts, depending on settings and installed packages
    "asgiref.sync",
    "attrs",
    "opentelemetry.exporter.prometheus",
    "opentelemetry.instrumentation.asgi",
    "opentelemetry.sdk.metrics.export",
)
NUMBER: Final = struct.Struct("i")
REQUEST_MAX_BYTES: Final = 1 << 18
ANSWER_S: Final = 60.0
# The variable that sets how long a request of a forked gateway waits for the collector, which here shares its process
# with a test: on a busy machine neither may get a core for longer than the product waits.
COLLECTOR_S: Final = "TESTS_COLLECTOR_S"


class Forked:
    """A running command, with those methods of `subprocess.Popen` that tests need."""

    def __init__(
        self,
        *arguments: str,
        stdout: IO[Any],
        stderr: IO[Any],
        env: Mapping[str, str],
        cwd: Path | None = None,
    ) -> None:
        self.arguments = arguments
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(ANSWER_S)
        self._connection.connect(server())
        request = {"arguments": arguments, "env": dict(env), "cwd": str(cwd or Path.cwd())}
        body = json.dumps(request).encode()
        assert len(body) < REQUEST_MAX_BYTES
        socket.send_fds(self._connection, [NUMBER.pack(len(body))], [stdout.fileno(), stderr.fileno()])
        self._connection.sendall(body)
        self.pid: int = NUMBER.unpack(self._connection.recv(NUMBER.size, socket.MSG_WAITALL))[0]

    def poll(self) -> int | None:
        """The exit status, or minus the signal that ended it; None while it runs."""
        return self._status(0.0)

    def wait(self, timeout: float) -> int:
        """The status, as `poll` gives it. Raises subprocess.TimeoutExpired."""
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(["warmlane", *self.arguments], timeout)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its status is on the way
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _status(self, timeout: float) -> int | None:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                answer = self._connection.recv(NUMBER.size, socket.MSG_WAITALL)
            except (BlockingIOError, TimeoutError):
                return None
            self._connection.close()
            assert answer, "the process that forks commands is gone"
            self.returncode = NUMBER.unpack(answer)[0]
        return self.returncode


def run(
    *arguments: str, env: Mapping[str, str], timeout: float = ANSWER_S, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Runs `warmlane` with *arguments* to its end, as `subprocess.run` with captured text does."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = Forked(*arguments, stdout=stdout, stderr=stderr, env=env, cwd=cwd)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(["warmlane", *arguments], status, *texts)


@cache
def server() -> str:
    """The socket of the process that forks."""
    return server_at((sys.executable, "-m", "tests.kit.warm_cli"), clean_environment())


def _kill_without_its_starter(pid: int, starter: socket.socket) -> None:
    """Returns when *pid* has ended. Kills it if the process that asked for it ends first."""
    end = os.pidfd_open(pid)
    waited_for: list[Any] = [end, starter]
    ended, _, _ = select.select(waited_for, [], [])
    if end not in ended:
        signal.pidfd_send_signal(end, signal.SIGKILL)
    os.close(end)


def _next_command(listener: socket.socket) -> list[str]:
    """Serves for ever. Returns only in forks of this process, with the arguments that each has to run."""
    while True:
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        head, outputs, _, _ = socket.recv_fds(connection, NUMBER.size, 2)
        request = json.loads(connection.recv(NUMBER.unpack(head)[0], socket.MSG_WAITALL))
        # a process in between waits, because only a parent learns the exit status of its child
        pid = os.fork()
        if pid:
            connection.sendall(NUMBER.pack(pid))
            _kill_without_its_starter(pid, connection)
            _, status = os.waitpid(pid, 0)
            try:
                connection.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))
            finally:
                os._exit(0)
        connection.close()
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
            os.close(output)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        arguments: list[str] = request["arguments"]
        return arguments


def main() -> None:
    import gc
    import importlib

    from litestar import Litestar

    from ops import cli

    for name in PRELOADED:
        importlib.import_module(name)
    Litestar([])  # this imports its plugins
    gc.collect()
    gc.freeze()  # the collector of a fork skips these objects, so their pages stay shared
    path = Path(sys.argv[1])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.part")
    listener.listen()
    Path(f"{path}.part").replace(path)  # the socket appears when it accepts connections
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the processes in between
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches this process too, which has to stay
    arguments = _next_command(listener)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["warmlane", *arguments]
    wait_s = os.environ.pop(COLLECTOR_S, None)
    with contextlib.nullcontext() if wait_s is None else patch("ops.telemetry.sending.WAIT_S", float(wait_s)):
        cli.main()


if __name__ == "__main__":
    main()
