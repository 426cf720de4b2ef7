"""A fork server whose children misbehave, as the slot's name says. Run as `rogue_fork_server.py FD`."""

import os
import signal
import socket
import sys
import time

from lane_worker.runtime.host_messages import LENGTH, PID, Ready, decode_fork, frame

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
        body, descriptors, _, _ = socket.recv_fds(control, 65536, 1)
        if not body:
            return
        slot = decode_fork(body).slot
        if slot == "cpu-refused":
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            pipe = socket.socket(fileno=descriptors[0])
            pipe.sendall(frame(Ready(os.getpid())))
            pipe.recv(65536)
            pipe.sendall(SPOKEN[slot])
            if slot == "cpu-truncated":
                os._exit(0)
            while True:
                time.sleep(1)  # deaf to Exit and to the end of the pipe
        os.close(descriptors[0])
        control.sendall(PID.pack(pid))


main()
