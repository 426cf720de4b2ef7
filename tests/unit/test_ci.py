"""What runs the checks: `.ci/run`, the workflow of GitHub that calls it, and the hooks before a commit."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.kit.tools import tool

ROOT: Final = Path(__file__).parents[2]
WORKFLOWS: Final = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BIN: Final = Path(sys.executable).parent


def steps() -> list[dict[str, Any]]:
    workflows = [yaml.safe_load(path.read_text()) for path in WORKFLOWS]
    return [step for workflow in workflows for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_workflow_is_one_and_runs_what_this_repository_runs() -> None:
    command: list[str | Path] = [BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert [step["run"] for step in steps() if "name" not in step and "run" in step] == [".ci/run"]


def test_what_the_workflow_takes_from_others_is_pinned_by_its_commit() -> None:
    """A tag can be moved to other code."""
    taken = [step["uses"] for step in steps() if "uses" in step]
    assert taken
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", each) for each in taken), taken


@pytest.mark.tools
def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    actionlint = tool("actionlint")
    checked = subprocess.run([actionlint, *WORKFLOWS], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("github.ref", "github.reff"))
    assert subprocess.run([actionlint, broken], capture_output=True, check=False).returncode == 1


def test_the_hooks_are_the_linters_of_make_lint() -> None:
    """Each line of `style` and `types` in the Makefile is a hook, and the documents are one more."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    hooked = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    targets = re.findall(r"^(?:style|types): .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    linters = {match for lines in targets for match in re.findall(r"\$\(BIN\)/([\w-]+)", lines)}
    assert {"ruff", "codespell", "mypy", "lint-imports"} == linters
    assert hooked == linters | {"python"}
