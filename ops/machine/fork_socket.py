"""The names of the socket on which a shared fork server answers (ADR 0018), for its workers and for `warmlane up`."""

import socket
from pathlib import Path
from typing import Final

SHARED_FORK_SERVER: Final = "WARMLANE_FORK_SERVER"
"""The variable that names the socket to a worker. Where it is empty, the worker imports torch itself."""


def importing(path: Path) -> Path:
    """The name of the socket *path* until torch is imported: workers may connect, and are answered after that."""
    return path.with_name(f"{path.name}.part")


def listen(path: Path) -> socket.socket:
    """A socket that listens, under the name of `importing`; what was left there is removed.

    Raises OSError where there can be none: some file systems have no sockets, and the path of a socket may have about
    100 bytes.
    """
    remove(path)
    return _listen(importing(path))


def can_listen(path: Path) -> bool:
    """Whether there can be a socket at *path*; what is there stays."""
    trial = path.with_name(f"{path.name}.test")
    try:
        trial.unlink(missing_ok=True)
        _listen(trial).close()
        trial.unlink()
    except OSError:
        return False
    return True


def is_answered(path: Path) -> bool:
    """Whether a process listens at *path*, or will once it has imported torch. It asks the kernel: a file may be
    stale."""
    return any(_connects(name) for name in (path, importing(path)))


def remove(path: Path) -> None:
    """Removes what a killed fork server left."""
    for name in (path, importing(path)):
        name.unlink(missing_ok=True)


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as trial:
        trial.setblocking(False)
        try:
            trial.connect(str(path))
        except BlockingIOError:  # its queue is full: a process listens
            return True
        except OSError:
            return False
    return True


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o700)  # only workers of this user may connect
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener
