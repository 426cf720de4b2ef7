"""A fork server whose children misbehave, as the slot's name says, once they have "loaded". They do not import torch.

Run as `python -m tests.e2e.rogue_fork_server FD`. For children that run real pipelines see `tests/kit/rogue_host.py`.
"""

import os
import signal
import socket
import sys
import time

from contracts.memory import MemoryReading
from lane_worker.forking.host_messages import (
    LENGTH,
    PID,
    Loaded,
    Ping,
    Ready,
    body_length,
    decode_fork,
    decode_to_child,
    frame,
)

SPOKEN = {
    "cpu-garbage": b"\x00\x00\x00\x04\xc1\xc1\xc1\xc1",
    "cpu-endless": LENGTH.pack(2**32 - 1),
    "cpu-silent": b"",
    "cpu-truncated": LENGTH.pack(500) + b"half of it",
}


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        body, descriptors, _, _ = socket.recv_fds(control, 65536, 2)
        if not body:
            return
        slot = decode_fork(body).slot
        if slot == "cpu-refused":
            return
        if slot == "cpu-out-of-memory":  # what the kernel does to a container at its limit
            os.kill(os.getpid(), signal.SIGKILL)
        pid = os.fork()
        if pid == 0:
            control.close()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            pipe = socket.socket(fileno=descriptors[0])
            pipe.sendall(frame(Ready(os.getpid())))
            _await_order(pipe)
            pipe.sendall(frame(Loaded("phr00t", 0.0, MemoryReading(rss_bytes=1))))
            _await_order(pipe)
            pipe.sendall(SPOKEN[slot])
            if slot == "cpu-truncated":
                os._exit(0)
            while True:
                time.sleep(1)  # ignores Exit and the end of the pipe
        for descriptor in descriptors:  # it never reports how a child ended
            os.close(descriptor)
        control.sendall(PID.pack(pid))


def _await_order(pipe: socket.socket) -> None:
    while True:
        head = pipe.recv(LENGTH.size, socket.MSG_WAITALL)
        if not isinstance(decode_to_child(pipe.recv(body_length(head), socket.MSG_WAITALL)), Ping):
            return


main()
