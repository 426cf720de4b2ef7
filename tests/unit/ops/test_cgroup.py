"""What the kernel says of a container's memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from ops.machine.cgroup import memory_limit_bytes, oom_kills
from tests.kit.cgroups import ENTER, small_cgroup

V2 = {"memory.events": "low 0\nhigh 3\nmax 17\noom 2\noom_kill 2\noom_group_kill 0\n", "memory.max": "2147483648\n"}
V1 = {
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "memory.limit_in_bytes": "2147483648\n",
}
# Fills memory in a child, and says what was counted before and after.
FILL = """
import os
from ops.machine.cgroup import memory_limit_bytes, oom_kills
before = oom_kills()
child = os.fork()
if not child:
    held = bytearray(200_000_000)
    held[::4096] = b"x" * len(held[::4096])
    os._exit(0)
_, status = os.waitpid(child, 0)
print(before, oom_kills(), os.WTERMSIG(status), memory_limit_bytes())
"""


@pytest.mark.parametrize(
    ("own", "folder", "files"),
    [
        ("0::/system.slice/lane.service\n", "system.slice/lane.service", V2),
        ("0::/\n", "", V2),  # in a container with a namespace of its own
        ("0::/docker/ab12\n", "", V2),  # in one whose path is the host's
        ("5:cpu:/x\n4:memory:/docker/ab12\n1:name=systemd:/x\n", "memory/docker/ab12", V1),
        ("4:cpuset,memory:/docker/ab12\n", "memory", V1),
    ],
)
def test_its_files_are_found(own: str, folder: str, files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    place = tmp_path / "mount" / folder
    place.mkdir(parents=True)
    for name, text in files.items():
        (place / name).write_text(text)
    here = {"mount": tmp_path / "mount", "own": tmp_path / "own"}
    assert (oom_kills(**here), memory_limit_bytes(**here)) == (2, 2 << 30)


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n", ""])
def test_no_limit_is_none(limit: str, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "memory.max").write_text(limit)
    here = {"mount": tmp_path, "own": tmp_path / "own"}
    assert (oom_kills(**here), memory_limit_bytes(**here)) == (None, None)
    assert oom_kills(mount=tmp_path, own=tmp_path / "gone") is None


def test_the_kernel_counts_what_it_kills() -> None:
    with small_cgroup(64 << 20) as folder:
        program = ENTER.format(folder=str(folder)) + FILL
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "1", "9", str(64 << 20)], done.stderr
