"""`warmlane fork-server` becomes the process that the workers share."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lane_worker.forking.command import command
from lane_worker.forking.fork_server import FORK_SERVER, host_environment
from ops.machine.fork_socket import importing, listen
from ops.nats.access import ROLES, password_variable


def test_it_becomes_the_fork_server_without_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append(arguments))
    left = tmp_path / "forks"
    left.touch()
    result = CliRunner(env={password_variable(role): "secret" for role in ROLES}).invoke(command, [str(left)])
    assert result.exit_code == 0, result.output
    ((program, arguments, environment),) = became
    assert (program, arguments) == (FORK_SERVER[0], [*FORK_SERVER, str(left)])
    assert "secret" not in environment.values()
    assert "expandable_segments:True" in environment["PYTORCH_ALLOC_CONF"]
    assert not left.exists(), "the socket of an earlier run would be taken for one that answers"


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_fork_server_that_lives_keeps_its_socket(is_ready: bool, tmp_path: Path) -> None:
    """Otherwise it would run for ever, and no worker would find it."""
    path = tmp_path / "forks"
    with listen(path):
        if is_ready:
            importing(path).replace(path)
        result = CliRunner().invoke(command, [str(path)])
        assert result.exit_code == 1
        assert "another fork server answers" in result.output
        assert path.exists() is is_ready


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path / "nowhere" / "forks")])
    assert result.exit_code == 2
    assert "make it first" in result.output


@pytest.mark.parametrize(("first", "tracked"), [("pass", True), ("lock_progress_bars_in_process()", False)])
def test_a_progress_bar_starts_no_process(first: str, tracked: bool) -> None:
    """It would if processes were started by a fork server, which is the default of Python 3.14."""
    script = (
        "import multiprocessing; multiprocessing.set_start_method('forkserver')\n"
        "from multiprocessing.resource_tracker import _resource_tracker as tracker\n"
        "from tqdm.auto import tqdm\n"
        "from lane_worker.pipelines.forkserver import lock_progress_bars_in_process\n"
        f"{first}\n"
        "tqdm([], disable=False, file=open('/dev/null', 'w')).close()\n"
        "print(tracker._pid is not None)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout == f"{tracked}\n"


def test_it_leaves_with_its_worker_and_takes_nothing_down_before() -> None:
    """To take down what it imported is a third of a second of a core, for each worker that leaves."""
    script = (
        "import atexit, sys, types\n"
        "for name, what in (('child', 'child_main'), ('preload', 'preload')):\n"
        "    module = sys.modules['lane_worker.pipelines.' + name] = types.ModuleType(name)\n"
        "    setattr(module, what, lambda: None)\n"
        "from lane_worker.pipelines import forkserver\n"
        "atexit.register(print, 'taken down')\n"
        "print('imported')\n"
        "forkserver.main()\n"
    )
    worker, control = socket.socketpair()
    worker.close()
    with control:
        left = subprocess.run(
            [sys.executable, "-c", script, str(control.fileno())],
            env=host_environment(os.environ),
            pass_fds=[control.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (left.returncode, left.stdout, left.stderr) == (0, "imported\n", "")
