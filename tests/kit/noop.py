"""`warmlane` whose pipelines do nothing: `python -m tests.kit.noop ROLE …`, for one process and all that it starts.

Only four functions of the pipeline host and the libraries of its pipelines are replaced: nothing is loaded, no step
computes anything, and the video is a file that was encoded once. All else is the product's own. Gateway and nats-server
are started without this module.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final
from unittest.mock import MagicMock

from ops import cli
from ops.commands.up import processes
from ops.lanes import providers as lane_providers
from ops.machine.fork_socket import SHARED_FORK_SERVER
from ops.machine.processes import warmlane_command
from tests.kit.orders import ORDER_VARIABLE, in_the_product, named

FORK_SERVER: Final = "forkserver"
WORKERS: Final = ("lane", "degraded")


def noop_command(*arguments: str) -> list[str]:
    """As `warmlane_command`, but workers and the roles that start workers get pipelines that do nothing."""
    if arguments[0] in ("up", "supervisor", FORK_SERVER, *WORKERS):
        return [sys.executable, "-m", "tests.kit.noop", *arguments]
    return warmlane_command(*arguments)


def main() -> None:
    """Replaces the pipelines in this process and in those that it starts, and runs the role."""
    role, *rest = sys.argv[1:]
    _replace(processes, "warmlane_command", noop_command)
    _replace(lane_providers, "warmlane_command", noop_command)
    if role == FORK_SERVER:
        serve_hosts(rest)
        return
    if role in WORKERS:
        from lane_worker.forking.fork_server import ForkServer

        ForkServer.__init__.__defaults__ = (noop_command(FORK_SERVER),)
    if role == "degraded" and os.environ.get(ORDER_VARIABLE):
        _order_by(*os.environ[ORDER_VARIABLE].split())
    os.environ[SHARED_FORK_SERVER] = ""  # there is no import to share
    sys.argv = ["warmlane", role, *rest]
    cli.main()


def _order_by(name: str, slice_s: str) -> None:
    """Makes the degraded worker choose by an order that is not the product's own."""
    import lane_worker.runtime.order

    _replace(lane_worker.runtime.order, "choose", in_the_product(named(float(slice_s))[name]))


def serve_hosts(arguments: list[str]) -> None:
    """A fork server whose children make no videos. Locks, pipes, cleanup and memory readings are the product's own."""
    for library in (
        "diffusers",
        "diffusers.hooks",
        "transformers",
        "transformers.conversion_mapping",
    ):  # they take seconds to import, and a host without a pipeline does not need them
        sys.modules[library] = MagicMock()

    import numpy as np

    from lane_worker.forking.host_messages import Rehearsed, WrittenVideo
    from lane_worker.pipelines import child, forkserver, preload
    from lane_worker.pipelines.video import Frames, write_video

    frames = np.zeros((1, 32, 32, 3), np.uint8)
    encoded: dict[int, tuple[bytes, WrittenVideo]] = {}

    def load(*_: object, **__: object) -> Any:
        return SimpleNamespace(components={}, remove_all_hooks=lambda: None)

    def run(_pipeline: object, parameters: Any, _image: object, on_step: Callable[[int], None]) -> Frames:
        on_step(parameters.steps)
        return frames

    def write(_frames: Frames, path: Path, *, fps: int) -> WrittenVideo:
        if fps in encoded:
            content, video = encoded[fps]
            path.write_bytes(content)
        else:
            video = write_video(frames, path, fps=fps)
            encoded[fps] = path.read_bytes(), video
        return video

    def rehearse(*_: object) -> Rehearsed:
        return Rehearsed(0.0)

    replaced: dict[str, Callable[..., Any]] = {
        "load_pipeline": load,
        "run_pipeline": run,
        "write_video": write,
        "rehearse": rehearse,
    }
    for name, replacement in replaced.items():
        _replace(child, name, replacement)
    _replace(preload, "preload", lambda: None)
    sys.argv = [FORK_SERVER, *arguments]
    forkserver.main()


def _replace(module: ModuleType, name: str, replacement: Callable[..., Any]) -> None:
    assert hasattr(module, name), f"the product has moved on: {module.__name__} has no {name}"
    setattr(module, name, replacement)


if __name__ == "__main__":
    main()
