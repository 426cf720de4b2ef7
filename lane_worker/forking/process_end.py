"""The end of a process that need not be our child. A descriptor identifies it: its pid may be another's by now."""

import asyncio
import os
import select
import signal

import structlog

from lane_worker.forking.host_messages import SlotNote
from lane_worker.forking.slot import process_start

log = structlog.get_logger("host")


def process_end(pid: int) -> asyncio.Future[None]:
    """Done when process *pid* has ended, whoever its parent is."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):
        # It has ended already; or this is macOS, or a kernel before 5.3, where the end of the pipe has to serve.
        ended.set_result(None)
        return ended

    def on_end() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        ended.set_result(None)

    loop.add_reader(descriptor, on_end)
    return ended


def kill_noted(noted: SlotNote) -> None:
    """SIGKILL the process of a slot's note, unless it has ended: its pid may be another process's now."""
    try:
        descriptor = os.pidfd_open(noted.pid)
    except (AttributeError, OSError):  # it has ended; or this system cannot distinguish processes that had one pid
        return
    try:
        # read after the descriptor was opened, so that it is the start of the very process that is killed
        if noted.started is not None and process_start(noted.pid) == noted.started and not _has_ended(descriptor):
            log.warning("pipeline_host_put_aside", pid=noted.pid, term=noted.term)
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def _has_ended(descriptor: int) -> bool:
    """Whether the process of *descriptor* has ended. The kernel still shows it, until its parent reaps it."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
