"""A fork server whose hosts do not import torch (`python -m tests.e2e.light_fork_server SOCKET`, or FD).

Everything but the hosts is the product's own. A host "loads" the model that the worker names. If the name of its slot
says so, it then fills its memory, before or after its answer.
"""

import importlib.abc
import importlib.machinery
import os
import socket
import sys
import time
import types
from typing import Final, NoReturn

from contracts.memory import MemoryReading
from lane_worker.forking.host_messages import (
    LENGTH,
    Exit,
    Fork,
    Load,
    Loaded,
    Ping,
    Pong,
    Ready,
    body_length,
    decode_to_child,
    frame,
)
from lane_worker.pipelines import forkserver


def child_main(pipe: socket.socket, request: Fork) -> NoReturn:
    """Reports that it is ready, answers pings, and "loads"."""
    os.write(2, f"a host for {request.slot}\n".encode())
    pipe.sendall(frame(Ready(os.getpid())))
    while head := pipe.recv(LENGTH.size, socket.MSG_WAITALL):
        match decode_to_child(pipe.recv(body_length(head), socket.MSG_WAITALL)):
            case Ping(number):
                pipe.sendall(frame(Pong(number)))
            case Load(model):
                if request.slot == "cpu-hungry":
                    _fill_memory()
                pipe.sendall(frame(Loaded(model, 0.0, MemoryReading(rss_bytes=1))))
                if request.slot == "cpu-hungry-later":
                    _fill_memory()
            case Exit():
                break
    os._exit(0)


def _fill_memory() -> None:
    held = []
    while True:
        held.append(b"x" * 10_000_000)


# Both import torch and libraries built on it.
REPLACED: Final = ("lane_worker.pipelines.child", "lane_worker.pipelines.preload")


class Child(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The import of the hosts' code, which lasts until the test ends it."""

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
