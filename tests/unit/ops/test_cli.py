"""The command line: every command explains itself, nothing heavy is imported early, and statuses are as documented."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from contracts.settings import load_settings
from ops.cli import COMMANDS, INTERRUPTED, cli
from tests.kit.support import BOUND_S, clean_environment, free_port
from tests.kit.terminal import Terminal

ROOT = Path(__file__).parents[3]
NOWHERE = "nats://127.0.0.1:1"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`warmlane …` in a process of its own."""
    command = [sys.executable, "-m", "ops.cli", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Example" in result.output
    assert f"warmlane {name}" in result.output


def test_help_of_submit_says_which_models_need_an_image() -> None:
    production = load_settings().catalog("production").models
    needing = [name for name, entry in production.items() if entry.constraints.image.presence == "required"]
    help_text = " ".join(CliRunner().invoke(cli, ["submit", "--help"]).output.split())
    assert f"The production profile's {' and '.join(needing)} need" in help_text


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.returncode == 0
    for name, entry in COMMANDS.items():
        assert f"  {name} " in result.stdout
        assert entry.text in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["submit", "--help"]])
def test_client_commands_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from ops.cli import cli\n"
        f"cli.main({arguments!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'diffusers', 'litestar', 'uvicorn', 'nats', 'av'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_an_unknown_command_is_a_usage_error_with_a_suggestion() -> None:
    result = run("sumbit")
    assert result.returncode == 2
    assert re.search(r"Did you mean .*'submit'\?", result.stderr)


def test_an_error_is_one_line_and_status_1(tmp_path: Path) -> None:
    port = free_port()
    result = run("demo", "--out", str(tmp_path), "--url", f"http://127.0.0.1:{port}")
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: no gateway answers at http://127.0.0.1:{port}")
    assert "warmlane up" in result.stderr


@pytest.mark.parametrize("arguments", [["demo"], ["submit", "anisora", "a fox", "--idempotency-key", "k1"]])
def test_ctrl_c_ends_with_130_and_no_traceback(arguments: list[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(BOUND_S)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "ops.cli", *arguments, "--out", str(tmp_path / "made"), "--url", url]
        process = subprocess.Popen(
            command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)  # it has asked, and now waits for an answer that never comes
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in errors
    assert "interrupted" in errors
    if arguments[0] == "submit":
        assert "--idempotency-key k1" in errors


@pytest.mark.parametrize(
    "arguments",
    [["up"], ["gateway", "--nats-url", NOWHERE], ["provision", "--nats-url", NOWHERE]],
    ids=lambda it: it[0],
)
def test_tasks_are_not_forgotten_before_their_deadlines(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, [*arguments, "--data-dir", str(tmp_path / "data"), "--keep", "39s"])
    assert result.exit_code == 2
    assert "39s is less than the 40s for which a task may wait or be silent" in result.output
    assert not (tmp_path / "data").exists()


SHELLS = {
    "bash": ("bash", "--norc", "-i"),
    "zsh": ("zsh", "-f", "-i"),
    "fish": ("fish", "--private", "--no-config"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_and_options(shell: str, tmp_path: Path) -> None:
    """By the line of the runbook, typed as people do, with the tabulator. Skipped where the shell is not installed."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}: it is a package of Debian's")
    lines = re.findall(rf"^- {shell}: `(.+)`$", (ROOT / "ops" / "runbook.md").read_text(), re.MULTILINE)
    assert len(lines) == 1
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TERM": "xterm",
    }
    with Terminal(SHELLS[shell], environment) as terminal:
        terminal.type(f"{lines[0]}\necho re''ady\n")
        terminal.until("ready\r\n")
        for typed, completed in (
            ("warmlane lane-m", "lane-mode"),
            ("warmlane status --js", "--json"),
            ("warmlane tasks can", "cancel"),
            ("warmlane tasks list --st", "--status"),
        ):
            terminal.type(f"{typed}\t")
            terminal.until(completed)
            terminal.type("\x15")  # the line is cleared; Ctrl-C would throw away what is typed next, too


def test_a_command_that_ends_does_not_search_its_memory_for_garbage() -> None:
    """That would take as long as half of its imports. What is left to search is next to nothing."""
    program = (
        "import gc, sys; from ops.cli import main; sys.argv = ['warmlane', 'gateway', '--help']\n"
        "try: main()\n"
        "finally: print(gc.get_freeze_count(), len(gc.get_objects()), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True)
    frozen, left = map(int, ended.stderr.split())
    assert frozen > 50_000
    assert left < frozen / 100
