"""`warmlane fork-server`: torch imported once for all the workers of a machine (ADR 0018)."""

import os
from pathlib import Path

import click

from lane_worker.forking.allocator import AllocatorMisconfigured
from lane_worker.forking.fork_server import FORK_SERVER, host_environment
from ops.machine.fork_socket import SHARED_FORK_SERVER, can_listen, is_answered, remove


@click.command(
    epilog="Examples:\n\n  warmlane fork-server /run/warmlane/forks\n\n"
    "  WARMLANE_FORK_SERVER=/run/warmlane/forks warmlane lane ...   (or degraded, supervisor, up)"
)
@click.argument("socket", type=click.Path(path_type=Path, dir_okay=False), envvar=SHARED_FORK_SERVER)
def command(socket: Path) -> None:
    """Import torch once for all workers of this machine that are given WARMLANE_FORK_SERVER=SOCKET.

    They start in a second instead of six, and share the memory of the libraries. SOCKET appears when torch is imported;
    workers that start earlier wait for it. Each worker still has a fork server and a pipeline host of its own,
    which outlive this process. A worker that finds nobody at SOCKET imports torch itself.

    `warmlane up` starts one by itself, unless WARMLANE_FORK_SERVER is set. Where that is set and empty, every worker
    imports torch itself.
    """
    socket = socket.absolute()
    if not socket.parent.is_dir():
        raise click.BadParameter(f"there is no folder {socket.parent}; make it first", param_hint="SOCKET")
    if not can_listen(socket):
        raise click.BadParameter(
            f"cannot listen at {socket}: choose a path of at most 90 bytes, on a local file system, that you may "
            "write to",
            param_hint="SOCKET",
        )
    if is_answered(socket):
        raise click.ClickException(f"another fork server answers at {socket}; stop it, or choose another path")
    try:
        environment = host_environment(os.environ)
    except AllocatorMisconfigured as error:
        raise click.ClickException(str(error)) from error
    remove(socket)  # of an earlier run, whose forks go on
    os.execve(FORK_SERVER[0], [*FORK_SERVER, str(socket)], environment)  # noqa: S606  # no shell is the point
