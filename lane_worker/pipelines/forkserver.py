"""The fork server of a worker: `python -m lane_worker.pipelines.forkserver FD`, started by `runtime/host.py`.

It imports torch and diffusers once and forks a pipeline host for each request that comes over the socket FD, in
milliseconds instead of the seconds those imports take. It holds no pipeline and no card itself, runs no tensor
operation before it forks, and ends with its worker.

`multiprocessing` has such a server. This one is as small, and does not run the worker's main script again in every
child, swallow a failing import, block the worker's event loop while it starts, or need a second helper process.
"""

import faulthandler
import gc
import os
import signal
import socket
import sys
from typing import Final

from lane_worker.runtime.host_messages import PID, decode_fork

REQUEST_MAX_BYTES: Final = 65536


def main() -> None:
    # Ctrl-C in a terminal reaches every process of the group; the worker decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    faulthandler.enable()
    gc.disable()  # what imports make stays: looking through it again and again costs a sixth of their time
    from lane_worker.pipelines.child import child_main  # takes seconds, so Ctrl-C is ignored before

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    gc.collect()
    gc.freeze()
    gc.enable()
    while True:
        body, descriptors, _, _ = socket.recv_fds(control, REQUEST_MAX_BYTES, 1)
        if not body:  # the worker is gone
            return
        request = decode_fork(body)
        pid = os.fork()
        if pid == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child_main(socket.socket(fileno=descriptors[0]), request)
        os.close(descriptors[0])
        control.sendall(PID.pack(pid))


if __name__ == "__main__":
    main()
