"""How a pipeline host died. It is no child of its worker: its fork server reports what it ended with, and the kernel
counts the processes that it killed in this container because memory ran out."""

import asyncio
import signal
import socket
import struct
from collections.abc import Callable
from typing import Final

from lane_worker.forking.host_messages import EXIT_CODE
from ops.machine.cgroup import memory_limit_bytes, oom_kills

# The fork server learns of the end at once. One that is frozen or gone must not hold the worker up.
REPORTED_S: Final = 1.0


class KillsForMemory:
    """Whether the kernel killed a process of this container for memory since a host was last known to live.

    A process that it killed before that was another one: a host of an earlier start, or one beside it. The counter is
    read when a ping is sent, and that reading becomes the baseline when the pong is read. A host that answers a ping
    was alive after that reading, however late its pong is read.
    """

    def __init__(self, read: Callable[[], int | None] = oom_kills) -> None:
        """*read* returns the counter of this container; None where the kernel does not report it."""
        self._read = read
        self._before = read()
        self._asked: tuple[int, int | None] | None = None

    def asks(self, number: int) -> None:
        """Ping *number* is about to be sent."""
        if self._asked is None:
            self._asked = (number, self._read())

    def answers(self, number: int) -> None:
        """The host has answered ping *number*."""
        if self._asked is not None and number >= self._asked[0]:
            self._before, self._asked = self._asked[1], None

    def seen(self) -> bool:
        """Whether there was such a kill; False where the kernel does not report them."""
        now = self._read()
        return self._before is not None and now is not None and now > self._before


async def reported_exit_code(exit_reader: socket.socket) -> int | None:
    """What the host ended with, as its fork server reports on *exit_reader*: its exit status, or the number of the
    signal that ended it, negative. None where the fork server reports nothing, such as one that is gone. Bounded by
    REPORTED_S."""
    try:
        async with asyncio.timeout(REPORTED_S):
            (code,) = EXIT_CODE.unpack(await asyncio.get_running_loop().sock_recv(exit_reader, EXIT_CODE.size))
    except (OSError, struct.error):
        return None
    return int(code)


def how_it_died(exit_code: int | None, *, short_of_memory: bool) -> str:
    """How a host that ended with *exit_code* (None: unknown) died, for people. *short_of_memory*: the kernel meanwhile
    killed a process of this container because memory ran out."""
    if short_of_memory and exit_code in (None, -signal.SIGKILL):
        return f"the pipeline host was killed by the kernel (signal 9, SIGKILL): {_what_ran_out(memory_limit_bytes())}"
    if exit_code is None:
        return "the pipeline host died"
    if exit_code < 0:
        return f"the pipeline host was killed by signal {-exit_code}{_name(-exit_code)}"
    return f"the pipeline host ended by itself, with exit status {exit_code}"


def _what_ran_out(limit_bytes: int | None) -> str:
    if limit_bytes is None:
        return (
            "memory ran out, and this container has no limit of its own: that of the machine, or of the group that it "
            "is in, was reached; give it more, or serve smaller videos"
        )
    return (
        f"the memory limit of {limit_bytes / (1 << 30):.1f} GiB of this container was reached; raise it, or serve "
        "smaller videos"
    )


def _name(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal
        return ""
