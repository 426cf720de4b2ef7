"""The fork server of a worker: `python -m lane_worker.pipelines.forkserver FD`, started by `forking/fork_server.py`.

With the path of a Unix socket in place of FD it is the one that the workers of a machine share (`warmlane fork-server`,
ADR 0018). It then forks a fork server for each worker that connects, and that fork serves the one worker alone.

It imports torch and diffusers once and forks a pipeline host for each request that comes over the socket FD, in
milliseconds instead of the seconds those imports take. It holds no pipeline and no card itself, runs no tensor
operation before it forks, and ends with its worker.

`multiprocessing` has such a server. This one is as small, and does not run the worker's main script again in every
child, swallow a failing import, block the worker's event loop while it starts, or need a second helper process.
"""

import contextlib
import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from tqdm import tqdm

from lane_worker.forking.allocator import AllocatorMisconfigured, require
from lane_worker.forking.host_messages import EXIT_CODE, PID, decode_fork
from ops.machine.fork_socket import importing, listen

REQUEST_MAX_BYTES: Final = 65536


def main() -> None:
    # Ctrl-C in a terminal reaches every process of the group; the worker decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        require(os.environ)
    except AllocatorMisconfigured as error:  # torch reads it once, at its import: later is too late (FR-010)
        sys.exit(f"the fork server does not start: {error}")
    place = sys.argv[1]
    control = socket.socket(fileno=int(place)) if place.isdecimal() else None
    listener = listen(Path(place)) if control is None else None
    faulthandler.enable()
    gc.disable()  # what the imports make stays: searching it for garbage again and again costs a sixth of their time
    lock_progress_bars_in_process()
    from lane_worker.pipelines import child  # noqa: F401  # takes seconds, so Ctrl-C is ignored before
    from lane_worker.pipelines.preload import preload

    preload()

    gc.collect()
    gc.freeze()
    gc.enable()
    if listener is not None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the forks, and nobody asks what they end with
        importing(Path(place)).replace(place)
        control = _next_worker(listener)
        _adopt(control)
    assert control is not None
    _serve(control)
    _leave()


def lock_progress_bars_in_process() -> None:
    """Gives tqdm, with which every library here shows progress, a lock that is no named semaphore.

    For tqdm's own lock Python 3.14 starts a second process (`multiprocessing.resource_tracker`) beside each pipeline
    host. That process counts as the host's memory, and outlives it.
    """
    tqdm.set_lock(threading.RLock())


class _Hosts:
    """The hosts that this process forks. It reaps each one that ends, and reports to its worker what it ended with."""

    def __init__(self) -> None:
        self._exit_writers: dict[int, int] = {}
        self._woken, self._wakes = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wakes, False)  # as the wakeup descriptor has to be
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def reap_until(self, control: socket.socket) -> None:
        """Returns when there is something to read on *control*."""
        ready: list[int] = []
        while control.fileno() not in ready:
            ready, _, _ = select.select([control.fileno(), self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()

    def add(self, pid: int, exit_writers: Sequence[int]) -> None:
        """Host *pid* was forked. *exit_writers* is empty where its worker is of an earlier version."""
        for descriptor in exit_writers:
            self._exit_writers[pid] = descriptor

    def leave(self) -> None:
        """Called in a new host: drops what only its parent needs to watch hosts."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (self._woken, self._wakes, *self._exit_writers.values()):
            os.close(descriptor)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                exit_writer = self._exit_writers.pop(pid, None)
                if exit_writer is not None:
                    with contextlib.suppress(OSError):  # its worker is gone
                        os.write(exit_writer, EXIT_CODE.pack(os.waitstatus_to_exitcode(status)))
                    os.close(exit_writer)


def _serve(control: socket.socket) -> None:
    """Forks a pipeline host for each request of the worker at the other end, until the worker is gone."""
    from lane_worker.pipelines.child import child_main

    hosts = _Hosts()
    while True:
        hosts.reap_until(control)
        body, descriptors, _, _ = socket.recv_fds(control, REQUEST_MAX_BYTES, 2)
        if not body:  # the worker is gone
            return
        pipe, *exit_writers = descriptors
        request = decode_fork(body)
        pid = os.fork()
        if pid == 0:
            control.close()
            hosts.leave()
            for descriptor in exit_writers:
                os.close(descriptor)
            child_main(socket.socket(fileno=pipe), request)
        os.close(pipe)
        hosts.add(pid, exit_writers)
        control.sendall(PID.pack(pid))


def _next_worker(listener: socket.socket) -> socket.socket:
    """Listens for ever. Returns only in forks of this process: in each with the connection of a worker."""
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):  # no process can be made: the worker sees its connection close
            if os.fork() == 0:
                listener.close()
                return connection.dup()  # `with` closes the one that was accepted


def _adopt(control: socket.socket) -> None:
    """Makes this fork the fork server of the worker at the other end of *control*: it prints where the worker does."""
    body, descriptors, _, _ = socket.recv_fds(control, 1, 2)
    if not body:  # a client that only checked whether somebody answers
        _leave()
    for number, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.setsid()
    control.sendall(PID.pack(os.getpid()))


def _leave() -> NoReturn:
    """Ends this process at once: tearing down all that was imported would take a third of a second of a core."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
