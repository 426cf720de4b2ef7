"""The notifications that systemd gets from a process, on the socket on which it listens."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.nats.access import access, make_users
from ops.telemetry.probes import HUNG, STARTING, ProcessHealth, judged_by
from ops.telemetry.service_manager import SOCKET_VARIABLE, lines_for, reporting_to_service_manager
from tests.kit.support import BOUND_S, eventually_sync

WARM = ProcessHealth(True, "warm")
DRAINS = ProcessHealth(False, "draining", "one\ntask")


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listens:
        path = str(tmp_path / "notify")
        listens.bind(path)
        listens.settimeout(BOUND_S)
        monkeypatch.setenv(SOCKET_VARIABLE, path)
        yield listens


@pytest.mark.parametrize(
    ("now", "before", "was_ready", "expected"),
    [
        pytest.param(STARTING, None, False, [f"STATUS=starting: {STARTING.reason}", "WATCHDOG=1"], id="starts"),
        pytest.param(WARM, STARTING, False, ["READY=1", "STATUS=warm", "WATCHDOG=1"], id="1-ready"),
        pytest.param(WARM, WARM, True, ["WATCHDOG=1"], id="2-nothing-new"),
        pytest.param(DRAINS, WARM, True, ["STATUS=draining: one task", "WATCHDOG=1"], id="2-one-line"),
        pytest.param(WARM, DRAINS, True, ["STATUS=warm", "WATCHDOG=1"], id="1-ready-once"),
        pytest.param(HUNG, WARM, True, [f"STATUS=hung: {HUNG.reason}"], id="3-no-watchdog"),
    ],
)
def test_lines(now: ProcessHealth, before: ProcessHealth | None, was_ready: bool, expected: list[str]) -> None:
    assert lines_for(now, before, was_ready=was_ready) == expected


async def test_systemd_is_told_when_it_is_ready_and_when_it_leaves(manager: socket.socket) -> None:
    def read_until(line: bytes) -> list[bytes]:
        found = [manager.recv(4096)]
        while line not in found[-1].split(b"\n"):
            found.append(manager.recv(4096))
        return found

    with reporting_to_service_manager():
        assert SOCKET_VARIABLE not in os.environ  # the children of this process send no notification
        first = await asyncio.to_thread(read_until, b"WATCHDOG=1")
        assert b"READY=1" not in b"".join(first)
        with judged_by(lambda: WARM):
            await asyncio.to_thread(read_until, b"READY=1")
    await asyncio.to_thread(read_until, b"STOPPING=1")


def test_a_program_that_tells_nothing_is_ready_when_it_listens(manager: socket.socket) -> None:
    program = (
        "import os, socket, sys\n"
        "from ops.telemetry.service_manager import report_when_listening\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    server.set_inheritable(True)\n"
        "    port = server.getsockname()[1]\n"
        "    report_when_listening('127.0.0.1', port)\n"
        "    os.execv(sys.executable, [sys.executable, '-c', 'input()'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        try:
            assert manager.recv(4096).startswith(b"READY=1\nSTATUS=listens at 127.0.0.1:")
            message, descriptors, _, _ = socket.recv_fds(manager, 4096, 1)
            assert (message, len(descriptors)) == (b"BARRIER=1", 1)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            # nobody is left for the other program to reap, soon: the message may come before its sender's parent ends
            eventually_sync(lambda: children.read_text() == "")
            os.close(descriptors[0])
        finally:
            process.kill()


def test_a_password_that_systemd_hands_over_is_taken_where_the_folder_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handed = "nats://127.0.0.1:4222", tmp_path / "handed"
    make_users(tmp_path, url)
    folder = tmp_path / "nats-auth"
    handed.mkdir()
    (folder / "lane.json").rename(handed / "lane.json")
    assert access("lane", url, data_dir=tmp_path).user is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(handed))
    assert access("lane", url, data_dir=tmp_path).user == "lane"
    assert access("lane", "nats://elsewhere:4222", data_dir=tmp_path).user is None
