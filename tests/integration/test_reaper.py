"""Everything that a test has started ends with its process, however that ends."""

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.kit import reaper
from tests.kit.support import SHARED_FOLDER, command_line, eventually_sync, is_running

ROOT = Path(__file__).parents[2]
TEST = """
import os, signal
from pathlib import Path
from tests.kit.gateway import GatewayProcess
from tests.kit import reaper

def test_that_never_ends({fixtures}, tmp_path):
    if {gateway}:
        (tmp_path / "gateway").mkdir()
        gateway = GatewayProcess(tmp_path / "gateway")
        gateway.nats = nats_server
        gateway.start()
    part = Path({marker!r} + ".part")
    part.write_text(f"{{os.getpid()}} {{os.environ[reaper.MARKS]}}")
    part.rename({marker!r})
    signal.pause()
"""


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """The file into which the test under test writes its process's number. Its processes are killed even if our test
    fails."""
    marker = tmp_path / "marker"
    yield marker
    if marker.exists():
        for process in list(reaper.marked(marker.read_text().split()[1].split(",")[0])):
            with contextlib.suppress(psutil.Error):
                process.kill()


@pytest.mark.parametrize(
    ("victim", "number", "fixtures", "expected"),
    [
        pytest.param("run", signal.SIGKILL, "system", {" up ", "forkserver", " lane ", "nats-server"}, id="kill-9"),
        pytest.param("worker", signal.SIGKILL, "nats_server, link", {"warm_cli"}, id="kill-9-of-a-worker"),
        pytest.param("run", signal.SIGTERM, "nats_server", {"nats-server"}, id="sigterm"),
        pytest.param("run", signal.SIGINT, "nats_server", {"nats-server"}, id="ctrl-c"),
    ],
)
def test_nothing_that_a_test_started_outlives_it(
    tmp_path: Path, marker: Path, victim: str, number: signal.Signals, fixtures: str, expected: set[str]
) -> None:
    """Ends a suite in this way, and checks everything that one of its tests started."""
    file = tmp_path / "test_it.py"
    file.write_text(TEST.format(fixtures=fixtures, marker=str(marker), gateway="warm_cli" in expected))
    inherited = {SHARED_FOLDER, reaper.MARKS, "PYTEST_XDIST_WORKER"}
    clean = {name: value for name, value in os.environ.items() if name not in inherited}
    options = ["-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    options += [] if number in {signal.SIGTERM, signal.SIGINT} else ["-n", "1"]
    with (tmp_path / "output").open("wb") as output:
        command = [sys.executable, "-m", "pytest", *options, str(file)]
        run = subprocess.Popen(command, cwd=ROOT, env=clean, stdout=output, stderr=output)
    try:
        eventually_sync(lambda: marker.exists() or run.poll() is not None, within_s=300)
        assert marker.exists(), (tmp_path / "output").read_text()
        worker, marks = marker.read_text().split()
        started = {process.pid: command_line(process.pid) for process in reaper.marked(marks.split(",")[0])}
        assert {name for name in expected if not any(name in line for line in started.values())} == set(), started

        os.kill(run.pid if victim == "run" else int(worker), number)

        run.wait(170)  # without its one worker the run ends by itself
        eventually_sync(lambda: not any(map(is_running, started)))
        # this includes what those started before they ended: a living supervisor restarts a lane
        eventually_sync(lambda: not any(reaper.marked(marks.split(",")[0])))
    finally:
        run.kill()


def test_a_process_that_has_ended_is_not_among_the_marked() -> None:
    """Its parent has not reaped it: the kernel still shows it, without a command line."""
    program = "import subprocess; ended = subprocess.Popen(['true']); print(ended.pid, flush=True); input()"
    mark = f"{os.getpid()}-{uuid.uuid4().hex}"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, reaper.MARKS: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        ended = int(parent.stdout.readline())
        eventually_sync(lambda: not is_running(ended))
        assert [process.pid for process in reaper.marked(mark)] == [parent.pid]
        parent.communicate(b"\n")
        assert list(reaper.marked(mark)) == []


def test_the_watcher_outlives_a_process_that_ends_while_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the others that the test started would stay."""
    with subprocess.Popen(["true"]) as ended, subprocess.Popen(["sleep", "600"]) as other:
        looks = iter([[psutil.Process(ended.pid), psutil.Process(other.pid)]])
        ended.wait()
        monkeypatch.setattr(reaper, "marked", lambda mark: next(looks, []))
        try:
            reaper.kill_all("any")
            assert not is_running(other.pid)
        finally:
            other.kill()
