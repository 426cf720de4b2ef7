"""`warmlane up`: how it starts, what it refuses, and that it leaves nothing behind."""

import fcntl
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from ops.processes import warmlane_command
from tests.support import children_of, clean_environment, eventually_sync, free_port, is_running
from tests.system import UpProcess


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        warmlane_command(*arguments), capture_output=True, text=True, timeout=60, env=clean_environment(), check=False
    )


@pytest.fixture
def phr00t_only(tmp_path: Path) -> UpProcess:
    """One lane: the other model is not served."""
    up = UpProcess(tmp_path, "--lanes", "phr00t=1", "--step-seconds", "0.2")
    up.start()
    return up


def test_ctrl_c_finishes_the_task_in_hand_and_leaves_nothing(phr00t_only: UpProcess) -> None:
    up = phr00t_only
    refused = up.http.post("/generate", json={"model": "anisora", "prompt": "x"})
    assert (refused.status_code, refused.json()["code"]) == (503, "no_lane")
    task = up.submit(model="phr00t")
    eventually_sync(lambda: up.task(task["id"])["status"] == "processing")
    below = children_of(up.pid)
    assert len(below) >= 5  # server, gateway, lane, fork server, host
    assert up.interrupt() == 0
    assert [pid for pid in below if is_running(pid)] == []
    for path in (up.data_dir / "locks").iterdir():
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises when somebody still holds it
    up.start()  # the same folder and ports again: what was accepted before is still known
    done = up.ended(task["id"])
    assert (done["status"], done["attempt"]) == ("done", 1)
    assert up.video(task["id"])
    up.stop()


def test_kill_9_of_up_takes_everything_with_it(tmp_path: Path) -> None:
    up = UpProcess(tmp_path, "--lanes", "phr00t=1")
    up.start()
    below = children_of(up.pid)
    os.kill(up.pid, signal.SIGKILL)
    eventually_sync(lambda: not any(is_running(pid) for pid in below), within_s=60)


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        for option, other in (("--port", "--nats-port"), ("--nats-port", "--port")):
            result = run("up", option, taken, other, str(free_port()), "--data-dir", str(tmp_path / "data"))
            assert result.returncode == 1
            assert f"port {taken} on 127.0.0.1 is taken" in result.stderr
            assert option in result.stderr


def test_one_up_to_a_folder(system: UpProcess) -> None:
    result = run("up", "--port", str(free_port()), "--nats-port", str(free_port()), "--data-dir", str(system.data_dir))
    assert result.returncode == 1
    assert "another `warmlane up` uses" in result.stderr


def test_one_lane_to_a_slot(system: UpProcess) -> None:
    """Design §7: the lock, and not the server, keeps two pipelines off one card."""
    options = ["--nats-url", system.nats_url, "--data-dir", str(system.data_dir)]
    result = run("lane", "--model", "phr00t", "--name", "intruder", "--slot", "cpu-0", *options)
    assert result.returncode == 1
    assert f"slot cpu-0 is held by process {system.host_of('anisora-0')}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["up", "--host", "0.0.0.0"], "not a loopback address"),
        (["up", "--lanes", "sora=1"], "no model is called sora"),
        (["up", "--lanes", "anisora"], "MODEL=COUNT"),
        (["up", "--keep", "soon"], "not a time such as"),
        (["up", "--profile", "huge"], "no profile 'huge'"),
        (["lane", "--model", "anisora", "--slot", "../x"], "not a slot"),
        (["lane", "--model", "anisora", "--name", "a.b"], "not usable in a subject"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], expected: str, tmp_path: Path) -> None:
    result = run(*arguments, "--data-dir", str(tmp_path / "data"))
    assert result.returncode in (1, 2)
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_a_settings_file_with_a_mistake_names_its_place(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"schema": 1, "windows": {}}')
    result = run("up", "--settings", str(path), "--data-dir", str(tmp_path / "data"))
    assert result.returncode == 1
    assert str(path) in result.stderr
    assert "$.windows" in result.stderr


def test_a_named_server_program_that_is_none(tmp_path: Path) -> None:
    environment = clean_environment() | {"WARMLANE_NATS_SERVER": str(tmp_path / "missing")}
    result = subprocess.run(
        warmlane_command("up", "--data-dir", str(tmp_path / "data")),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert result.returncode == 1
    assert "correct or unset it" in result.stderr
