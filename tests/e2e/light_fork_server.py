"""A shared fork server whose hosts know no torch (`python -m tests.e2e.light_fork_server SOCKET`).

All but the hosts is the product's own. What a host is told goes to its error output, until its worker is gone.
"""

import os
import socket
import sys
import types
from typing import NoReturn

from lane_worker.pipelines import forkserver
from lane_worker.runtime.host_messages import Fork, Ready, frame


def child_main(pipe: socket.socket, request: Fork) -> NoReturn:
    """Says that it is ready, and nothing else."""
    os.write(2, f"a host for {request.slot}\n".encode())
    pipe.sendall(frame(Ready(os.getpid())))
    while pipe.recv(4096):
        pass
    os._exit(0)


child = types.ModuleType("lane_worker.pipelines.child")
child.__dict__["child_main"] = child_main
sys.modules[child.__name__] = child
forkserver.main()
