"""What a wheel of Warmlane holds: the product with its data, and no tests. It is built here as pip builds it."""

import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement

from tests.unit.test_import_rules import imported

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES: Final = ("contracts", "degraded_worker", "gateway", "lane_worker", "ops")
# In a checkout it stands at the root.
MOVED: Final = {"ops/nats.conf": "nats.conf"}
# The endings of files that are no code, by the package that reads them.
DATA: Final = {
    "contracts": {".json"},
    "degraded_worker": set[str](),
    "gateway": {".css", ".html", ".js", ".json", ".svg", ".txt"},
    "lane_worker": {".json", ".txt"},
    "ops": {
        ".Dockerfile",
        ".conf",
        ".env",
        ".json",
        ".md",
        ".service",
        ".sh",
        ".svg",
        ".target",
        ".toml",
        ".tpl",
        ".txt",
        ".yaml",
    },
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, f"{built.stdout}{built.stderr}"
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture
def names(wheel: zipfile.ZipFile) -> list[str]:
    """Every file of the wheel, without its metadata."""
    return [name for name in wheel.namelist() if ".dist-info/" not in name]


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(wheel.read(name))


def test_it_holds_the_five_packages_and_nothing_else(names: list[str]) -> None:
    """No tests, benchmarks, drills or documents of the repository."""
    assert {name.partition("/")[0] for name in names} == set(PACKAGES)


def test_it_holds_every_file_of_the_packages(names: list[str]) -> None:
    here = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert set(names) == here | set(MOVED)


def test_each_package_has_the_kinds_of_data_that_it_reads(names: list[str]) -> None:
    kinds: dict[str, set[str]] = {package: set() for package in PACKAGES}
    for name in names:
        if not name.endswith(".py"):
            kinds[name.partition("/")[0]].add(Path(name).suffix)
    assert kinds == DATA


def test_what_stands_elsewhere_in_a_checkout_is_the_same_file(wheel: zipfile.ZipFile) -> None:
    for name, source in MOVED.items():
        assert wheel.read(name) == (ROOT / source).read_bytes()


def test_no_file_of_it_needs_what_is_not_in_it(names: list[str]) -> None:
    needing = {name for name in names if name.endswith(".py") and "tests" in set(imported(ROOT / name))}
    assert needing == set()


def test_an_install_brings_no_tool_of_the_developers(wheel: zipfile.ZipFile) -> None:
    needed = map(Requirement, metadata(wheel).get_all("Requires-Dist") or [])
    assert {each for each in needed if each.marker is None} == set(map(Requirement, PROJECT["dependencies"]))


def test_it_brings_the_one_command(wheel: zipfile.ZipFile) -> None:
    (points,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert wheel.read(points).decode().split("\n") == ["[console_scripts]", "warmlane = ops.cli:main", ""]
