"""Whether a process runs."""

import psutil


def is_running(pid: int) -> bool:
    """Whether process *pid* runs. One that has ended does not, though the kernel shows it until its parent asks how: on
    a busy machine for a moment, and in a container whose first process never asks for good."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:  # it is somebody else's
        return True
    except psutil.NoSuchProcess:
        return False
