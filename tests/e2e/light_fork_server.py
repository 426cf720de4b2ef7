"""A shared fork server whose hosts know no torch (`python -m tests.e2e.light_fork_server SOCKET`).

Everything but the hosts is the product's own. A host prints what it receives to its error output until its worker ends.
"""

import importlib.abc
import importlib.machinery
import os
import socket
import sys
import time
import types
from typing import Final, NoReturn

from lane_worker.forking.host_messages import Fork, Ready, frame
from lane_worker.pipelines import forkserver


def child_main(pipe: socket.socket, request: Fork) -> NoReturn:
    """Says that it is ready, and nothing else."""
    os.write(2, f"a host for {request.slot}\n".encode())
    pipe.sendall(frame(Ready(os.getpid())))
    while pipe.recv(4096):
        pass
    os._exit(0)


# Both import torch and what is built on it.
REPLACED: Final = ("lane_worker.pipelines.child", "lane_worker.pipelines.preload")


class Child(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The import of the hosts' code, which takes as long as the test wants."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in REPLACED else None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["child_main"] = child_main
        module.__dict__["preload"] = lambda: None
        until = os.environ.get("WARMLANE_TEST_IMPORTS_UNTIL")
        while until and not os.path.exists(until):
            time.sleep(0.02)


sys.meta_path.insert(0, Child())
forkserver.main()
