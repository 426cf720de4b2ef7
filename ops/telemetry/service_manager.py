"""Notifies systemd of a process with `Type=notify`: that it is ready, its status, that it is alive, that it stops.

The protocol is a datagram of lines to the socket that NOTIFY_SOCKET names (sd_notify(3)); those few lines need no
library. Without the variable nothing is sent.
"""

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

from ops.telemetry.probes import HUNG, ProcessHealth, standing

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
WATCHDOG_VARIABLES: Final = ("WATCHDOG_USEC", "WATCHDOG_PID")
LOOK_EVERY_S: Final = 0.5
LISTENS_WITHIN_S: Final = 60.0
# A service manager that reads nothing must not keep a process from ending.
SEND_S: Final = 1.0


def lines_for(now: ProcessHealth, before: ProcessHealth | None, *, was_ready: bool) -> list[str]:
    """The lines to send for a process whose health is *now*, and was *before* when it was last sent. Pure.

    1. READY=1 once, when the process is ready for the first time.
    2. Its health as STATUS, when that has changed.
    3. WATCHDOG=1 each time, except for a process that is hung: systemd is to restart it.
    """
    lines = ["READY=1"] if now.ready and not was_ready else []  # 1
    if now != before:
        lines.append(f"STATUS={now.state}{f': {now.reason}' if now.reason else ''}".replace("\n", " "))  # 2
    if now != HUNG:
        lines.append("WATCHDOG=1")  # 3
    return lines


@contextlib.contextmanager
def reporting_to_service_manager() -> Iterator[None]:
    """Reports the health of this process (`judged_by`) to systemd while the block runs, and after it that the process
    stops.

    It removes the variables from the environment: the processes that this one starts have nothing to report.
    """
    address = os.environ.pop(SOCKET_VARIABLE, "")
    for name in WATCHDOG_VARIABLES:
        os.environ.pop(name, None)
    if not address:
        yield
        return
    left = threading.Event()
    threading.Thread(target=_report, args=(address, left), name="service-manager", daemon=True).start()
    try:
        yield
    finally:
        left.set()
        _send(address, ["STOPPING=1"])


def report_when_listening(host: str, port: int) -> None:
    """Reports to systemd that this process is ready as soon as a program listens at *host* and *port*. A separate
    process does that, since this one is about to become another program. The unit needs `NotifyAccess=all` for it."""
    address = os.environ.pop(SOCKET_VARIABLE, "")
    if not address:
        return
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        # forks twice, so that the process that waits is not a child of this one: the other program would not reap it
        if os.fork() == 0:
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # locks of the other program must end with it
            _wait_until_listening(host, port)
            _send(address, ["READY=1", f"STATUS=listens at {host}:{port}"])
            _await_read(address)
    finally:
        os._exit(0)


def _wait_until_listening(host: str, port: int) -> None:
    until_s = time.monotonic() + LISTENS_WITHIN_S
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.05)
    os._exit(1)


def _report(address: str, left: threading.Event) -> None:
    before: ProcessHealth | None = None
    was_ready = False
    while not left.is_set():
        now = standing()
        if left.is_set():
            return
        _send(address, lines_for(now, before, was_ready=was_ready))
        before, was_ready = now, was_ready or now.ready
        left.wait(LOOK_EVERY_S)


def _await_read(address: str) -> None:
    # systemd finds the unit of a message by the sending process, which has to live until systemd has read the message
    read, write = os.pipe()
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(_name(address))
        socket.send_fds(to, [b"BARRIER=1"], [write])
        os.close(write)
        select.select([read], [], [], LISTENS_WITHIN_S)


def _name(address: str) -> str:
    return f"\0{address[1:]}" if address.startswith("@") else address


def _send(address: str, lines: list[str]) -> None:
    # a service manager that does not listen must not end this process
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        to.settimeout(SEND_S)
        to.connect(_name(address))
        to.send("\n".join(lines).encode(errors="replace"))
