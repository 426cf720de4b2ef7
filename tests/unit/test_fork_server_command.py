"""`warmlane fork-server` becomes the process that the workers share."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from lane_worker.fork_server import command
from lane_worker.runtime.host import FORK_SERVER
from ops.nats_access import ROLES, password_variable


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


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path / "nowhere" / "forks")])
    assert result.exit_code == 2
    assert "make it first" in result.output
