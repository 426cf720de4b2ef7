"""One nats-server to a data folder: the lock lives as long as the process that inherited it."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ops.nats import store_lock
from ops.nats.store_lock import LOCK_FILE, StoreHolder, holding_store, store_holder
from tests.kit.support import BOUND_S, eventually_sync


def test_nobody_holds_what_is_not_there(tmp_path: Path) -> None:
    assert store_holder(tmp_path / "none") is None
    with holding_store(tmp_path, "up", nats_port=4222):
        pass
    assert store_holder(tmp_path) is None


def test_the_second_process_learns_which_one_holds_the_lock(tmp_path: Path) -> None:
    with holding_store(tmp_path, "up", nats_port=4222, port=8000):
        assert store_holder(tmp_path) == StoreHolder(pid=os.getpid(), command="up", nats_port=4222, port=8000)
        expected = rf"in use by `warmlane up` \(pid {os.getpid()}, NATS port 4222\).*--data-dir"
        with pytest.raises(click.ClickException, match=expected), holding_store(tmp_path, "nats-server", nats_port=1):
            pass


def test_a_server_that_outlives_its_parent_holds_it_and_the_next_one_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note names a parent that has ended: this is what `kill -9` of a `warmlane up` leaves."""
    monkeypatch.setattr(store_lock, "ENDS_WITHIN_S", BOUND_S)
    command = [sys.executable, "-c", "input()", "-sd", str(tmp_path / "nats")]
    with holding_store(tmp_path, "up", nats_port=4222) as lock:
        server = subprocess.Popen(command, pass_fds=[lock], stdin=subprocess.PIPE)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # its parent has not reaped it yet
    note = (tmp_path / LOCK_FILE).read_text().replace(str(os.getpid()), str(ended.pid))
    (tmp_path / LOCK_FILE).write_text(note)
    eventually_sync(lambda: store_holder(tmp_path) == StoreHolder(pid=server.pid, command="up", nats_port=4222))
    assert server.stdin is not None
    server.stdin.close()  # it ends, some time after the next one began to wait
    with holding_store(tmp_path, "up", nats_port=4223):
        assert server.wait(60) is not None
    ended.wait()
