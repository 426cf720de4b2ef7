"""Secrets from files."""

import os
import subprocess
from pathlib import Path
from typing import Final

import click
import pytest

from ops.machine.secret_variables import secret_in
from ops.nats.access import access, environment_for

ROOT: Final = Path(__file__).parents[3]
NAME: Final = "WARMLANE_NATS_LANE_PASSWORD"


def test_a_secret_comes_from_its_variable_or_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("of the file\n")
    assert secret_in({NAME: "of the variable"}, NAME) == "of the variable"
    assert secret_in({f"{NAME}_FILE": str(file)}, NAME) == "of the file"
    assert secret_in({f"{NAME}_FILE": str(file), NAME: ""}, NAME) == "of the file"
    assert secret_in({NAME: "", f"{NAME}_FILE": ""}, NAME) is None
    assert secret_in({}, NAME) is None


def test_what_cannot_be_meant_is_an_error_without_the_secret(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    for file, why in ((tmp_path / "gone", "No such"), (tmp_path, "directory"), (empty, "is empty"), (binary, "UTF-8")):
        with pytest.raises(click.ClickException, match=why) as raised:
            secret_in({f"{NAME}_FILE": str(file)}, NAME)
        assert f"{NAME}_FILE" in raised.value.message
    with pytest.raises(click.ClickException, match="both set") as raised:
        secret_in({f"{NAME}_FILE": str(empty), NAME: "hush"}, NAME)
    assert "hush" not in raised.value.message


def test_a_role_takes_its_password_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lane"
    file.write_text("w1\n")
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.setenv(f"{NAME}_FILE", str(file))
    found = access("lane", "nats://127.0.0.1:4222", data_dir=tmp_path)
    assert (found.user, found.password) == ("lane", "w1")


def test_a_process_of_another_role_learns_of_no_file() -> None:
    assert environment_for("gateway", {f"{NAME}_FILE": "/run/secrets/lane", "HOME": "/"}) == {"HOME": "/"}


def entrypoint(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The image of nats-server, with a server that says what its lanes' password is."""
    (tmp_path / "nats-server").write_text(f'#!/bin/sh\necho "$1 ${NAME}"\n')
    (tmp_path / "nats-server").chmod(0o755)
    script = ROOT / "ops" / "deploy" / "images" / "nats-entrypoint.sh"
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | environment
    return subprocess.run(["sh", str(script), "-js"], env=env, capture_output=True, text=True, check=False)


def test_the_image_of_nats_server_takes_passwords_from_files_as_well(tmp_path: Path) -> None:
    file, empty = tmp_path / "lane", tmp_path / "empty"
    file.write_text("w1\n")
    empty.write_text("\n")
    assert entrypoint(tmp_path, **{NAME: "w0"}).stdout == "-js w0\n"
    assert entrypoint(tmp_path, **{f"{NAME}_FILE": str(file)}).stdout == "-js w1\n"
    for given, why in (
        ({f"{NAME}_FILE": str(empty)}, "is empty"),
        ({f"{NAME}_FILE": str(tmp_path / "gone")}, "cannot be read"),
        ({f"{NAME}_FILE": str(file), NAME: "w0"}, "both set"),
    ):
        refused = entrypoint(tmp_path, **given)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert why in refused.stderr
