"""Whether a process runs."""

import psutil


def is_running(pid: int) -> bool:
    """Whether process *pid* runs. A zombie does not: it has ended, and the kernel shows it only until its parent reaps
    it. On a busy machine that takes a moment; in a container whose first process reaps nothing, it never happens."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:  # another user's process
        return True
    except psutil.NoSuchProcess:
        return False
