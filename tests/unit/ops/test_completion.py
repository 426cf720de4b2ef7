"""What a shell offers to complete: the lines of ops/runbook.md, in the shells that are here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.kit.support import clean_environment

RUNBOOK: Final = Path(__file__).parents[3] / "ops" / "runbook.md"
LINES: Final = dict(re.findall(r"^- (bash|zsh|fish): `([^`]+)`$", RUNBOOK.read_text(), re.MULTILINE))
# How each shell says by which function `warmlane` is completed.
ASKED: Final = {"bash": "complete -p warmlane", "zsh": "echo $_comps[warmlane]", "fish": "complete -c warmlane"}


def run(*command: str, **more: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = clean_environment() | {"PATH": path} | more
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (asked.returncode, asked.stderr) == (0, ""), asked
    return asked.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_of_the_runbook_makes_a_shell_complete(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    assert "_warmlane_completion" in run(shell, "-c", f"{LINES[shell]}\n{ASKED[shell]}")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("warmlane tra", ["trace"]),
        ("warmlane tasks ", ["list", "show", "cancel", "download", "forget"]),
        ("warmlane trace --jaeger", ["--jaeger-url"]),
        ("warmlane gateway --access-log ", ["errors", "all"]),
    ],
)
def test_commands_options_and_values_are_offered(typed: str, expected: list[str]) -> None:
    words = typed.split(" ")
    offered = run("warmlane", _WARMLANE_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1))
    assert sorted(line.partition(",")[2] for line in offered.splitlines()) == sorted(expected)
