"""Everything that a test process starts ends with it, even if it is killed: no nats-server, fork server or gateway
stays.

`watch` starts a watcher. This process waits for the end of the test process, and then kills every process that carries
the test process's mark in its environment. Descendants inherit the mark at any depth and in any session, and a fork
keeps it. Signals to a process group do not reach the watcher: it has a session of its own.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from ops.machine.running import is_running

MARKS: Final = "TESTS_STARTED_BY"
"""The variable with the marks of the test processes above, separated by commas; the nearest one's is the last."""
EMPTY_LOOKS: Final = 3
BETWEEN_LOOKS_S: Final = 0.2
ROOT: Final = Path(__file__).parents[2]
_RUN: Final = "TESTS_RUN"


def watch() -> None:
    """From now on, everything that this process starts ends with it. A second call changes nothing."""
    mark = f"{os.getpid()}-{uuid.uuid4().hex}"
    above = [each for each in os.environ.get(MARKS, "").split(",") if each]
    if above and above[-1].startswith(f"{os.getpid()}-"):
        return
    unmarked = {name: value for name, value in os.environ.items() if name not in {MARKS, _RUN}}
    command = [sys.executable, "-m", "tests.kit.reaper", str(os.getpid()), mark]
    watcher = subprocess.Popen(
        command, cwd=ROOT, env=unmarked, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    assert watcher.stdout is not None
    with watcher.stdout as ready:
        assert ready.read(1), "nobody watches this process"
    watcher.returncode = 0  # it outlives this process, so nobody waits for it, and Python need not warn of that
    os.environ[MARKS] = ",".join([*above, mark])
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ[_RUN] = os.environ[MARKS]


def of_the_run() -> dict[str, str]:
    """The marks for everything that the workers of pytest-xdist share: it ends with the process that starts them."""
    return {MARKS: os.environ[_RUN]} if _RUN in os.environ else {}


def marked(mark: str) -> Iterator[psutil.Process]:
    """The processes that run with *mark*, and their descendants. Any of them may end before the caller looks at it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark in process.environ().get(MARKS, "").split(","):
                family = (process, *process.children(recursive=True))
                yield from (each for each in family if is_running(each.pid))


def kill_all(mark: str) -> None:
    """Kills all processes that carry *mark*. One look can miss a process between its fork and its exec, whose
    environment cannot be read."""
    empty_looks = 0
    while empty_looks < EMPTY_LOOKS:
        found = list(marked(mark))
        empty_looks = 0 if found else empty_looks + 1
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=1)
        time.sleep(BETWEEN_LOOKS_S)


def main() -> None:
    """Waits for the end of the process in the first argument, and kills what carries the mark in the second."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched = psutil.Process(int(sys.argv[1]))
    os.write(1, b"!")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a reader of the tests' output must not wait for this process
    os.dup2(1, 2)
    watched.wait()
    kill_all(sys.argv[2])


if __name__ == "__main__":
    main()
