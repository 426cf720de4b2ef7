"""Starting what `make bench` measures: where it runs, what it uses, and that the peers are served as the gateway is."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

from gateway.server.connections import Connections, http_config
from gateway.server.limits import Limits
from tests.bench.names import CELERY, TASKIQ, TASKIQ_KV
from tests.bench.peers.serving import config_of
from tests.bench.procs import Cores, NotStarted, Watch, apart, listens, server, usable_cores
from tests.bench.rounds import rotated
from tests.bench.stacks import contenders
from tests.kit.support import free_port, is_running


@pytest.mark.parametrize(
    ("available", "served", "rest"),
    [([0], {0}, {0}), ([0, 1], {1}, {0}), ([5, 2, 3, 4], {5}, {2, 3, 4})],
)
def test_the_service_has_a_core_for_itself_where_there_are_two(
    available: list[int], served: set[int], rest: set[int]
) -> None:
    cores = apart(available)
    assert (set(cores.served), set(cores.rest)) == (served, rest)
    assert cores.are_apart == (len(available) > 1)
    assert ("shares" in str(cores)) == (len(available) == 1)


def test_each_round_has_another_order() -> None:
    assert [rotated("abc", number) for number in range(4)] == [list(each) for each in ("abc", "bca", "cab", "abc")]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins processes to cores")
def test_a_server_runs_where_it_should_is_watched_and_ends_with_its_children(tmp_path: Path) -> None:
    core = min(usable_cores())
    port = free_port()
    script = (
        "import os, socket, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        f"listener = socket.create_server(('127.0.0.1', {port}))\n"
        "while True: listener.accept()[0].send(b'INFO')\n"
    )
    with server(
        "listener",
        [sys.executable, "-c", script],
        folder=tmp_path,
        cores=frozenset({core}),
        is_ready=lambda: listens(port, greets=b"INFO"),
    ) as found:
        watch = Watch([found], [])
        assert os.sched_getaffinity(found.pid) == {core}
        child = int(found.log)
        assert is_running(child)
        found.require_running()
        used = watch.end()
    assert used.served_s >= 0
    assert used.peak_bytes > 1_000_000
    assert not is_running(found.pid)
    assert not is_running(child)
    with pytest.raises(NotStarted, match="listener ended with status"):
        found.require_running()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such file')"]
    with (
        pytest.raises(NotStarted, match="broken ended with status 1: no such file"),
        server("broken", command, folder=tmp_path, cores=usable_cores(), is_ready=lambda: False),
    ):
        pass


def test_the_peers_are_served_as_the_gateway_is() -> None:
    ours = vars(http_config(None, Connections(Limits())))
    theirs = vars(config_of(None, 1))
    assert {name for name in ours if ours[name] != theirs[name]} == {"http", "lifespan", "port"}


def test_a_peer_that_cannot_run_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "taskiq" else object())
    monkeypatch.setattr(shutil, "which", lambda _: None)
    absent = {each.name: each.absent for each in contenders() if each.absent is not None}
    assert set(absent) == {CELERY, TASKIQ, TASKIQ_KV}
    assert "redis-server" in absent[CELERY]
    assert "not installed: taskiq; pip install" in absent[TASKIQ]


def test_one_core_is_enough() -> None:
    assert apart(usable_cores()).served
    assert not Cores(frozenset({0}), frozenset({0})).are_apart
