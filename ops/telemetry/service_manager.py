"""What systemd is told of a process with `Type=notify`: when it is ready, how it stands, that it lives, that it leaves.

The protocol is a datagram of lines to the socket that NOTIFY_SOCKET names (sd_notify(3)); those few lines need no
library. Without the variable nothing is told.
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
# A service manager that reads nothing must not keep a process from its end.
SEND_S: Final = 1.0


def lines_for(now: ProcessHealth, before: ProcessHealth | None, *, was_ready: bool) -> list[str]:
    """What to tell about a process that stands as *now*, and stood as *before* when it was told last. Pure.

    1. READY=1 once, when it is ready for the first time.
    2. How it stands, when that has changed.
    3. WATCHDOG=1 each time, except for a process that does not get to an answer: that one is to be started again.
    """
    lines = ["READY=1"] if now.ready and not was_ready else []  # 1
    if now != before:
        lines.append(f"STATUS={now.state}{f': {now.reason}' if now.reason else ''}".replace("\n", " "))  # 2
    if now != HUNG:
        lines.append("WATCHDOG=1")  # 3
    return lines


@contextlib.contextmanager
def reporting_to_service_manager() -> Iterator[None]:
    """Tells systemd how this process stands (`judged_by`) while the block runs, and after it that the process leaves.

    The variables are taken out of the environment: the processes that this one starts have nothing to tell.
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
    """Tells systemd that this process is ready as soon as somebody listens at *host* and *port*, from a process of its
    own: this one is about to become another program. A unit needs `NotifyAccess=all` for that."""
    address = os.environ.pop(SOCKET_VARIABLE, "")
    if not address:
        return
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        # twice, so that the one that waits is nobody's child here: the other program would not reap it
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
    # systemd finds the unit of a message by its sender, who therefore has to be there until it is read
    read, write = os.pipe()
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(_name(address))
        socket.send_fds(to, [b"BARRIER=1"], [write])
        os.close(write)
        select.select([read], [], [], LISTENS_WITHIN_S)


def _name(address: str) -> str:
    return f"\0{address[1:]}" if address.startswith("@") else address


def _send(address: str, lines: list[str]) -> None:
    # a service manager that does not listen ends nothing
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        to.settimeout(SEND_S)
        to.connect(_name(address))
        to.send("\n".join(lines).encode(errors="replace"))
