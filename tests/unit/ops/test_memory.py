"""Memory probes on real processes."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ops.machine.host_memory import available_bytes, rss_bytes, total_bytes
from ops.machine.memory import RssProbe, probe_for
from tests.kit.support import eventually_sync

MIB = 1024 * 1024


def test_rss_grows_by_what_is_written_and_shrinks_when_it_is_released() -> None:
    """Of a process of its own: this one may have room in its heap that other tests left."""
    code = (
        "import os, sys\nprint(flush=True)\nsys.stdin.readline()\nheld = bytearray(os.urandom(64 << 20))\n"
        "print(flush=True)\nsys.stdin.readline()\ndel held\nprint(flush=True)\nsys.stdin.readline()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        read = []
        for _ in range(3):
            child.stdout.readline()
            read.append(rss_bytes(child.pid))
            child.stdin.write(b"\n")
            child.stdin.flush()
    before, during, after = read
    assert 60 * MIB < during - before < 140 * MIB
    assert after < during - 60 * MIB


def test_rss_is_what_the_system_counts_less_shared_memory() -> None:
    assert rss_bytes(os.getpid()) <= psutil.Process().memory_info().rss + MIB


def test_a_process_that_ended_has_no_rss() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    zombie = psutil.Process(child.pid)
    eventually_sync(lambda: zombie.status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(ProcessLookupError):
        rss_bytes(child.pid)
    child.wait()
    with pytest.raises(ProcessLookupError):
        rss_bytes(child.pid)


# The probe of a CPU slot


TOUCH = """
import os, subprocess, sys
held = bytearray(os.urandom(64 << 20))
below = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE) if len(sys.argv) > 1 else None
print("held", flush=True)
sys.stdin.read()
"""


def test_a_probe_counts_the_process_and_those_below_it() -> None:
    below = "import os; held = bytearray(os.urandom(64 << 20)); input()"
    probe = probe_for("cpu-0")
    assert probe is not None
    assert (probe.name, probe.absolute_bytes, probe.poll_s, probe.deadline_s) == ("rss", 48_000_000, 0.1, 5.0)
    with subprocess.Popen(
        [sys.executable, "-c", TOUCH, below], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()

        def both() -> bool:
            reading = probe.read(process.pid)
            assert reading is not None
            return reading.used_bytes > 128 * MIB

        eventually_sync(both)
        process.kill()
    gone = probe.read(process.pid)
    assert gone is not None
    assert gone.used_bytes == 0


def test_nothing_is_in_use_without_a_host() -> None:
    reading = RssProbe().read(None)
    assert reading is not None
    assert reading.used_bytes == 0
    assert 0 < reading.free_bytes <= psutil.virtual_memory().total


V2 = {"memory.max": "1000000", "memory.current": "700000", "memory.stat": "inactive_file 100000\nactive_file 50000\n"}
V1 = {
    "memory.limit_in_bytes": "1000000",
    "memory.usage_in_bytes": "700000",
    "memory.stat": "total_inactive_file 100000\ntotal_active_file 50000\n",
}


@pytest.mark.parametrize(
    ("membership", "folder", "files", "expected"),
    [
        pytest.param("0::/a/b\n", "a/b", V2, 450_000, id="v2"),
        pytest.param("0::/a/b\n", "a", V2, 450_000, id="v2-limit-further-up"),
        pytest.param("0::/../outside\n", ".", V2, 450_000, id="v2-namespace"),
        pytest.param("4:memory,cpu:/a\n0::/\n", "memory/a", V1, 450_000, id="v1"),
        pytest.param("0::/a\n", "a", V2 | {"memory.max": "max"}, None, id="no-limit"),
        pytest.param("0::/a\n", "b", V2, None, id="another-cgroup"),
        pytest.param("4:cpu:/a\n", "memory/a", V1, None, id="another-controller"),
    ],
)
def test_a_cgroup_may_leave_less_than_the_system(
    tmp_path: Path, membership: str, folder: str, files: dict[str, str], expected: int | None
) -> None:
    cgroups = tmp_path / "cgroup"
    (cgroups / folder).mkdir(parents=True)
    for name, content in files.items():
        (cgroups / folder / name).write_text(content)
    (tmp_path / "self").write_text(membership)
    left_bytes = available_bytes(cgroups, tmp_path / "self")
    in_all_bytes = total_bytes(cgroups, tmp_path / "self")
    if expected is None:
        assert left_bytes > 10_000_000
        assert in_all_bytes == psutil.virtual_memory().total
    else:
        assert left_bytes == expected
        assert in_all_bytes == 1_000_000
