"""Arguments that are not text give one line and status 2; a poor terminal shows what it can. Neither gives a
traceback."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest
from click.testing import CliRunner

from ops.cli import COMMANDS, cli
from ops.commands.spelling import SHOWN, show_everything
from tests.kit.support import clean_environment

ROOT: Final = Path(__file__).parents[3]
WRONG: Final = os.fsdecode(b"f\xfcchslein")


def parameters(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Parameter]]:
    for parameter in command.params:
        if not isinstance(parameter.type, click.Path) and not getattr(parameter, "is_flag", False):
            yield path, parameter
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from parameters(below, (*path, name))


def everything() -> Iterator[tuple[tuple[str, ...], click.Parameter]]:
    ctx = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(ctx, name)
        assert command is not None
        yield from parameters(command, (name,))


def test_no_command_accepts_an_argument_that_is_not_text() -> None:
    for path, parameter in everything():
        given = [WRONG] if isinstance(parameter, click.Argument) else [parameter.opts[0], WRONG]
        result = CliRunner().invoke(cli, [*path, *given], env=clean_environment())
        assert result.exit_code == 2, (path, parameter.name, result.output)
        assert isinstance(result.exception, SystemExit), (path, parameter.name)


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "anisora", WRONG],
        ["submit", WRONG, "a fox"],
        ["submit", "anisora", "a fox", "--idempotency-key", WRONG],
        ["submit", "anisora", "a fox", "--negative-prompt", WRONG],
        ["submit", "anisora", "a fox", "--url", f"http://{WRONG}:8000"],
        ["tasks", "list", "--model", WRONG],
        ["tasks", "list", "--cursor", WRONG],
        ["lane-mode", WRONG],
        ["trace", WRONG],
        ["slots", "lift", WRONG],
        ["keys", "revoke", WRONG],
        ["lane", "--model", WRONG],
        ["lane", "--model", "anisora", "--name", WRONG],
        ["degraded", "--slot", WRONG],
        ["provision", "--profile", WRONG],
        ["provision", "--nats-url", f"nats://{WRONG}:4222"],
    ],
    ids=lambda it: " ".join(it[:-1]),
)
def test_a_bad_argument_is_reported_in_one_line(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("type it anew, or convert it with iconv")
    assert "not UTF-8 at character " in result.stderr


def test_variables_are_checked_like_arguments() -> None:
    result = CliRunner().invoke(cli, ["status"], env={"WARMLANE_URL": f"http://{WRONG}"})
    assert (result.exit_code, "not UTF-8 at character 9" in result.stderr) == (2, True)


def test_the_name_of_a_file_may_be_any_bytes(tmp_path: Path) -> None:
    (tmp_path / WRONG).write_bytes(b"no picture")
    result = CliRunner().invoke(cli, ["submit", "anisora", "a fox", "--image", str(tmp_path / WRONG)])
    assert (result.exit_code, "neither PNG, JPEG nor WebP" in result.stderr) == (2, True)


@pytest.mark.parametrize("command", ["up", "nats-server", "gateway", "supervisor", "degraded", "doctor"])
def test_a_system_runs_only_where_its_processes_can_exchange_file_names(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would start, and every worker would end at its first message to its pipeline host."""
    (tmp_path / WRONG).mkdir()
    monkeypatch.chdir(tmp_path / WRONG)
    for options in ([], ["--data-dir", str(tmp_path / WRONG)]):
        result = CliRunner().invoke(cli, [command, *options], env=clean_environment())
        assert (result.exit_code, "--data-dir" in result.stderr, "not UTF-8" in result.stderr) == (2, True, True)
    assert list((tmp_path / WRONG).iterdir()) == []


@pytest.mark.parametrize(
    ("encoding", "text", "expected"),
    [
        ("ascii", "a → b", b"a \\u2192 b"),
        ("iso8859-9", "ş → ü", b"\xfe \\u2192 \xfc"),
        ("ascii", f"{WRONG}.mp4 → x", b"f\xfcchslein.mp4 \\u2192 x"),
        ("utf-8", f"{WRONG} ü", b"f\xfcchslein \xc3\xbc"),
        ("ascii", "\udcfc\u2192\udcfd\ud800", b"\xfc\\u2192\xfd\\ud800"),
    ],
)
def test_whatever_is_printed_is_shown_somehow(
    encoding: str, text: str, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, errors="strict"))
    show_everything()
    assert sys.stdout.errors == SHOWN
    print(text, end="", flush=True)
    assert written.getvalue() == expected


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "no UTF-8 at all"],
)
def test_every_command_prints_in_any_locale(variables: dict[str, str], tmp_path: Path) -> None:
    program = [sys.executable, "-m", "ops.cli", "submit", "anisora", WRONG, "--out", str(tmp_path)]
    result = subprocess.run(program, cwd=ROOT, env=clean_environment() | variables, capture_output=True, check=False)
    assert (result.returncode, b"Traceback" in result.stderr) == (2, False)
    help_of = [sys.executable, "-m", "ops.cli", "keys", "add", "--help"]
    result = subprocess.run(help_of, cwd=ROOT, env=clean_environment() | variables, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
