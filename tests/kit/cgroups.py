"""A cgroup of a few MB of memory, and the files of one that does not exist."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.machine.cgroup import MOUNT

# Runs at the start of a program. From then on the program and its children are in the cgroup.
ENTER = "open({folder!r} + '/cgroup.procs', 'w').write('0')\n"


@contextlib.contextmanager
def small_cgroup(limit_bytes: int) -> Iterator[Path]:
    """The folder of a new cgroup whose processes may use *limit_bytes*. Skips the test where no cgroup can be made."""
    is_v1 = (MOUNT / "memory").is_dir()
    folder = (MOUNT / "memory" if is_v1 else MOUNT) / f"warmlane-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if is_v1 else "memory.max")).write_text(str(limit_bytes))
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        yield folder
    finally:
        folder.rmdir()


def write_counter(mount: Path, *, version: int, kills: int) -> Path:
    """Writes the files of a container's cgroup below *mount*, in *version* of the kernel's interface, as they are after
    the kernel killed *kills* processes. Returns the file that stands for `/proc/self/cgroup`."""
    if version == 2:
        own, folder, name = "0::/docker/ab12\n", mount / "docker" / "ab12", "memory.events"
        text = f"low 0\nhigh 0\nmax 17\noom {kills}\noom_kill {kills}\noom_group_kill 0\n"
    else:
        own, folder, name = "4:memory:/docker/ab12\n", mount / "memory" / "docker" / "ab12", "memory.oom_control"
        text = f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    (mount / "own").write_text(own)
    return mount / "own"
